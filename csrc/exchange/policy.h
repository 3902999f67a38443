/* What happens to the values that are not in the final set: the residual policies. */
#ifndef GTOPK_EXCHANGE_POLICY_H
#define GTOPK_EXCHANGE_POLICY_H

#include "gtopk.h"

typedef struct policy {
    int deposit;          /* what a merge drops or rounds off goes back to the ranks that were merged */
    int clear_final_only; /* a selected entry that is not in the final set stays whole in the residual */
} policy_t;

/* share: every value is either in the final set or in a residual, so all selected entries are cleared and the rest
 * comes back as deposits. paper: as published; own entries that did not survive stay, and what others sent for an index
 * that was pruned here and survived there is lost. */
static inline policy_t policy_of(int32_t name)
{
    return name == GTOPK_RESIDUAL_PAPER ? (policy_t){0, 1} : (policy_t){1, 0};
}

#endif
