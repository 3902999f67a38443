/* Libraries that are opened on demand, so that nothing heavy is linked. */
#ifndef GTOPK_UTIL_DYNLIB_H
#define GTOPK_UTIL_DYNLIB_H

#include <stddef.h>

/* A loaded library, or NULL. With `global` its symbols, and those of what it is linked with, serve libraries that are
 * loaded later: plug-ins of an MPI need that. On failure `error` (room for `size` characters) says why. */
void *dynlib_open(const char *file, int global, char *error, size_t size);

/* A library that this process has loaded already, by its name; or NULL. */
void *dynlib_loaded(const char *name);

/* Address of a symbol, NULL when there is none. */
void *dynlib_symbol(void *library, const char *name);

void dynlib_close(void *library);

/* The directory of this very library (of the program, where it is linked in), without the final slash: 1, or 0 when it
 * is not known or does not fit. */
int dynlib_directory(char *directory, size_t size);

#endif
