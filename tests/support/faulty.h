/* A transport around another one that spoils one message. For tests only. */
#ifndef TESTS_SUPPORT_FAULTY_H
#define TESTS_SUPPORT_FAULTY_H

#include "transport/transport.h"

#define FAULT_LIST(X)                                                                    \
    X(ERROR, "error")         /* the transport reports a failure */                      \
    X(STALL, "stall")         /* the message never arrives */                            \
    X(TRUNCATE, "truncate")   /* its end is missing */                                   \
    X(FLIP, "flip")           /* one bit is wrong */                                     \
    X(DUPLICATE, "duplicate") /* it arrives twice */                                     \
    X(REORDER, "reorder")     /* it arrives after the next one to the same rank */       \
    X(LATE, "late")           /* one of the step before arrives before it */             \
    X(EPOCH, "epoch")         /* it is of an earlier communicator, with the CRC right */ \
    X(FOREIGN, "foreign")     /* it is of another reducer, with the CRC right */         \
    X(ROUND, "round")         /* it is of another round, with the CRC right */

typedef enum fault_kind {
#define FAULT_ENUM(name, text) FAULT_##name,
    FAULT_LIST(FAULT_ENUM)
#undef FAULT_ENUM
        FAULT_KINDS
} fault_kind_t;

const char *fault_name(fault_kind_t kind);

/* Takes `inner`; NULL when out of memory. */
transport_t *faulty_create(transport_t *inner);

transport_t *faulty_inner(transport_t *faulty);

/* From now on messages are kept, for FAULT_LATE. */
void faulty_record(transport_t *faulty);

/* From now on the `at`-th message sent (from 0) is spoilt, or that call gives an error; at < 0: they are only counted. */
void faulty_arm(transport_t *faulty, fault_kind_t kind, int at, uint64_t seed);

/* Messages sent since faulty_arm, up to the end of the step: the caller reads it then. faulty_calls: what may give an
 * error, which is each of them and the transport's own collectives. */
int faulty_sent(const transport_t *faulty);
int faulty_calls(const transport_t *faulty);

#endif
