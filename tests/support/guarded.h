/* A device that behaves as one with memory and queues of its own, around a host device that computes. For tests only;
 * device_open knows it as "guarded" wherever this is linked in. GTOPK_GUARDED_INNER: the device inside ("cpu").
 *
 * Its memory cannot be touched by the host: addresses are those of a mapping without access, and what lies behind them is
 * reached by the device's own operations through a second mapping. A host that reads a count or a word crashes.
 *
 * Its streams really queue: an operation copies its arguments and does nothing until somebody waits for the stream.
 *
 * Whatever one thread opens is one machine, as the devices of a process share its GPU: streams, memory and errors are
 * common to all devices of a thread. Functions below are about the machine of the calling thread. */
#ifndef TESTS_SUPPORT_GUARDED_H
#define TESTS_SUPPORT_GUARDED_H

#include "device/device.h"

/* ---- for a transport that is ordered by streams ---- */

/* Work of the host in a stream. OK: done. TIMEOUT: not by `deadline`; it is called again. Anything else: the device has
 * failed. Device memory is reached by guarded_reach. */
typedef gtopk_status_t (*guarded_fn)(void *arg, double deadline);

/* Puts `fn` into a stream. `drop` is called in place of it when the stream is emptied after a failure. */
gtopk_status_t guarded_enqueue(void *stream, guarded_fn fn, void (*drop)(void *arg), void *arg);

/* Runs what is queued in a stream, in order, while *pending is not zero. TIMEOUT when work of the host was not done by
 * `deadline`. DEVICE: the device has failed. */
gtopk_status_t guarded_run(void *stream, double deadline, const int *pending);

/* Whether an address is memory of this thread's machine, and where operations of the device find it. Any other address is
 * given back as it is. */
int guarded_owns(const void *address);
void *guarded_reach(const void *address);

/* ---- for tests ---- */

typedef enum guarded_fault {
    GUARDED_NO_FAULT,
    GUARDED_AT_QUEUE, /* an operation is not taken */
    GUARDED_AT_RUN    /* it is taken and fails in the stream: nothing more is run or taken, and every call says so */
} guarded_fault_t;

/* From now on operations are counted, those that wait as well, and number `at` of them (from 0) fails, once. A device
 * that had failed is well again. */
void guarded_arm(guarded_fault_t fault, long at);

/* Operations since guarded_arm, and those that are queued now in all streams. */
long guarded_counted(void);
long guarded_queued(void);

#endif
