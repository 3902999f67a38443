/* Messages on their way in: is a header the awaited one, and if not, what is there to say of it? Works on host memory. */
#ifndef GTOPK_EXCHANGE_CHECK_H
#define GTOPK_EXCHANGE_CHECK_H

#include "exchange/link.h"

/* What of a message is at hand, and how far it is to be trusted. */
typedef enum check_form {
    CHECK_WHOLE, /* `received` bytes, not one more: length and checksum are checked */
    CHECK_PADDED, /* the message and padding, `received` bytes together: the checksum is checked; or a longer one's head */
    CHECK_HEAD,   /* the first `received` bytes of a longer one */
    CHECK_TRUSTED /* nothing but the header: the transport keeps lengths and bytes */
} check_form_t;

/* CORRUPT, MISMATCH, DESYNC (naming both values) or ABORTED, or OK: then *got is the header. `from` is the rank it came
 * from; got may be NULL, and so may expect: any valid header of that rank. */
gtopk_status_t check_message(const link_t *link, const uint8_t *message, size_t received, check_form_t form,
                             int32_t from, const wire_expect_t *expect, wire_header_t *got);

/* After `status`, whose text is the thread's, because more was sent than fits: the head, of which `held` bytes are at hand,
 * may be that of another call, which then is the better error. */
gtopk_status_t check_head(const link_t *link, const uint8_t *message, size_t held, int32_t from,
                          const wire_expect_t *expect, gtopk_status_t status);

#endif
