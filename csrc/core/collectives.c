/* The collectives of the public API: arguments checked, all ranks known to do the same, then the exchange. */
#include "core/comm.h"
#include "exchange/collective.h"

gtopk_status_t gtopk_broadcast(gtopk_comm_t *comm, void *buffer, size_t bytes, int32_t root)
{
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    if (root < 0 || root >= comm_size(comm))
        status = status_set(GTOPK_ERR_INVALID, "root %d is not a rank: there are %d", (int)root, (int)comm_size(comm));
    else if (bytes > 0 && !buffer)
        status = status_set(GTOPK_ERR_INVALID, "gtopk_broadcast of %zu bytes got no buffer", bytes);
    else {
        status = collective_agree_on(&comm->link, WIRE_BROADCAST, bytes);
        if (status == GTOPK_OK)
            status = collective_broadcast(&comm->link, buffer, bytes, root);
        status = comm_settle(comm, status, 0);
    }
    comm_leave(comm);
    return status;
}

gtopk_status_t gtopk_allgather(gtopk_comm_t *comm, const void *in, size_t bytes, void *out)
{
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    if (bytes > 0 && (!in || !out))
        status = status_set(GTOPK_ERR_INVALID, "gtopk_allgather of %zu bytes got no buffer", bytes);
    else {
        status = collective_agree_on(&comm->link, WIRE_ALLGATHER, bytes);
        if (status == GTOPK_OK)
            status = collective_allgather(&comm->link, in, bytes, out);
        status = comm_settle(comm, status, 0);
    }
    comm_leave(comm);
    return status;
}

static gtopk_status_t sum(gtopk_comm_t *comm, void *buffer, size_t count, gtopk_dtype_t dtype)
{
    const places_t all = places_of_all(&comm->map, comm_rank(comm));
    return collective_allreduce(&comm->link, &all, buffer, count, dtype);
}

gtopk_status_t gtopk_allreduce(gtopk_comm_t *comm, void *buffer, size_t count, int32_t dtype)
{
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    if (dtype != GTOPK_F32 && dtype != GTOPK_F64)
        status = status_set(GTOPK_ERR_INVALID,
                            "gtopk_allreduce sums GTOPK_F32 and GTOPK_F64, not dtype %d: convert first", (int)dtype);
    else if (count > 0 && !buffer)
        status = status_set(GTOPK_ERR_INVALID, "gtopk_allreduce of %zu values got no buffer", count);
    else {
        const size_t bytes = count * (dtype == GTOPK_F64 ? sizeof(double) : sizeof(float));
        status = collective_agree_on(&comm->link, WIRE_REDUCE_SCATTER, bytes);
        if (status == GTOPK_OK)
            status = sum(comm, buffer, count, (gtopk_dtype_t)dtype);
        status = comm_settle(comm, status, 0);
    }
    comm_leave(comm);
    return status;
}

gtopk_status_t gtopk_barrier(gtopk_comm_t *comm)
{
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    status = comm_settle(comm, collective_barrier(&comm->link), 0);
    comm_leave(comm);
    return status;
}
