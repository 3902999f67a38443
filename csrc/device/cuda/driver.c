/* Finds the driver and its functions, and puts its errors into words. */
#include "device/cuda/driver.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "util/dynlib.h"
#include "util/log.h"

#define LIBRARY "libcuda.so.1"

typedef cu_result_t (*get_version_fn)(int *version);
typedef cu_result_t (*get_address_fn)(const char *name, void **function, int version, uint64_t flags, int *found);

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static cuda_driver_t loaded;
static int is_loaded;

static gtopk_status_t open_library(void **library)
{
    char why[512];
    const char *named = getenv("GTOPK_CUDA_DRIVER"), *file = named && *named ? named : LIBRARY;
    *library = dynlib_open(file, 0, why, sizeof why);
    if (*library)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_NOT_FOUND,
                      "no CUDA driver: %s does not load (%s). It comes with NVIDIA's driver; in a container, start it "
                      "with GPU support (docker run --gpus all). On a machine without a GPU use the device \"cpu\"",
                      file, why);
}

static gtopk_status_t check_version(void *library, cuda_driver_t *driver)
{
    get_version_fn get_version;
    void *symbol = dynlib_symbol(library, "cuDriverGetVersion");
    memcpy(&get_version, &symbol, sizeof symbol);
    if (!symbol || get_version(&driver->version) != CU_SUCCESS)
        return status_set(GTOPK_ERR_UNSUPPORTED, "the CUDA driver does not tell its version: is %s NVIDIA's?", LIBRARY);
    if (driver->version < CUDA_DRIVER_MIN)
        return status_set(GTOPK_ERR_UNSUPPORTED,
                          "the NVIDIA driver supports CUDA %d.%d; gtopk needs CUDA %d.%d, that is driver %s or newer: "
                          "update the driver",
                          driver->version / 1000, driver->version % 1000 / 10, CUDA_DRIVER_MIN / 1000,
                          CUDA_DRIVER_MIN % 1000 / 10, CUDA_DRIVER_MIN_NAME);
    return GTOPK_OK;
}

/* Each function in the form that it had in the version that introduced it: what is called the same may have changed. */
static gtopk_status_t find_functions(void *library, cuda_driver_t *driver)
{
    get_address_fn get_address;
    void *symbol = dynlib_symbol(library, "cuGetProcAddress_v2");
    memcpy(&get_address, &symbol, sizeof symbol);
    if (!symbol)
        return status_set(GTOPK_ERR_UNSUPPORTED,
                          "the NVIDIA driver has no cuGetProcAddress: driver %s or newer is needed",
                          CUDA_DRIVER_MIN_NAME);
#define FIND(name, since, parameters)                                                                          \
    symbol = NULL;                                                                                             \
    if (get_address(#name, &symbol, since, 0, NULL) != CU_SUCCESS || !symbol)                                  \
        return status_set(GTOPK_ERR_UNSUPPORTED,                                                               \
                          "the NVIDIA driver (CUDA %d.%d) has no " #name ": it is incomplete or not NVIDIA's", \
                          driver->version / 1000, driver->version % 1000 / 10);                                \
    memcpy(&driver->name, &symbol, sizeof symbol);
    CUDA_DRIVER_FUNCTIONS(FIND)
#undef FIND
    return GTOPK_OK;
}

static gtopk_status_t initialise(const cuda_driver_t *driver)
{
    int count = 0;
    cu_result_t result = driver->cuInit(0);
    if (result == CU_SUCCESS)
        result = driver->cuDeviceGetCount(&count);
    if (result == CU_NO_DEVICE || (result == CU_SUCCESS && count == 0)) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        return status_set(GTOPK_ERR_UNSUPPORTED, "the CUDA driver finds no GPU (CUDA_VISIBLE_DEVICES is %s%s%s)",
                          visible ? "\"" : "", visible ? visible : "not set", visible ? "\"" : "");
    }
    return result == CU_SUCCESS ? GTOPK_OK : cuda_driver_error(driver, result, "starting the CUDA driver");
}

static gtopk_status_t load(cuda_driver_t *driver)
{
    void *library = NULL;
    gtopk_status_t status = open_library(&library);
    if (status != GTOPK_OK)
        return status;
    status = check_version(library, driver);
    if (status == GTOPK_OK)
        status = find_functions(library, driver);
    if (status == GTOPK_OK)
        status = initialise(driver);
    if (status != GTOPK_OK)
        dynlib_close(library);
    else
        LOG(GTOPK_LOG_INFO, "CUDA driver: CUDA %d.%d", driver->version / 1000, driver->version % 1000 / 10);
    return status;
}

gtopk_status_t cuda_driver_get(const cuda_driver_t **driver)
{
    gtopk_status_t status = GTOPK_OK;
    (void)pthread_mutex_lock(&mutex);
    if (!is_loaded) {
        cuda_driver_t found = {0};
        status = load(&found);
        if (status == GTOPK_OK) {
            loaded = found;
            is_loaded = 1;
        }
    }
    (void)pthread_mutex_unlock(&mutex);
    *driver = status == GTOPK_OK ? &loaded : NULL;
    return status;
}

gtopk_status_t cuda_driver_error(const cuda_driver_t *driver, cu_result_t result, const char *what)
{
    const char *name = NULL, *text = NULL;
    if (driver->cuGetErrorName(result, &name) != CU_SUCCESS || !name)
        name = "unknown error";
    if (driver->cuGetErrorString(result, &text) != CU_SUCCESS || !text)
        text = "the driver does not say what it is";
    if (result == CU_OUT_OF_MEMORY)
        return status_set(GTOPK_ERR_NOMEM, "%s: %s (%s); use a smaller model or batch, or fewer reducers", what, text,
                          name);
    return status_set(GTOPK_ERR_DEVICE,
                      "%s: %s (%s). An error of an earlier kernel shows up late: nothing on this GPU "
                      "can be relied on; start the process again, from a checkpoint",
                      what, text, name);
}
