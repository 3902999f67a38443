/* dlopen and dladdr, which differ from one system to the next only here. */
#include "util/dynlib.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

void *dynlib_open(const char *file, int global, char *error, size_t size)
{
    void *library = dlopen(file, RTLD_NOW | (global ? RTLD_GLOBAL : RTLD_LOCAL));
    if (!library) {
        const char *why = dlerror();
        (void)snprintf(error, size, "%s", why ? why : "unknown reason");
    }
    return library;
}

void *dynlib_loaded(const char *name)
{
    return dlopen(name, RTLD_NOW | RTLD_NOLOAD);
}

void *dynlib_symbol(void *library, const char *name)
{
    return dlsym(library, name);
}

void dynlib_close(void *library)
{
    if (library)
        (void)dlclose(library);
}

int dynlib_directory(char *directory, size_t size)
{
    static const char here = 0; /* an address inside this library */
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname)
        return 0;
    const char *slash = strrchr(info.dli_fname, '/');
    const size_t length = slash ? (size_t)(slash - info.dli_fname) : 1;
    if (length >= size)
        return 0;
    memcpy(directory, slash ? info.dli_fname : ".", length);
    directory[length] = 0;
    return 1;
}
