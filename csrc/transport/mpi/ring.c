#include "transport/mpi/ring.h"

/* Start of chunk c. */
static size_t ring_chunk(const ring_t *ring, size_t c)
{
    const size_t more = ring->count % ring->size;
    return ring->count / ring->size * c + (c < more ? c : more);
}

/* Where the segment of message t lies, which is of the chunk sent (ahead 0) or received (1); *length: its floats. */
static float *ring_segment(const ring_t *ring, size_t t, size_t ahead, size_t *length)
{
    const size_t c = (ring->rank + 2 * ring->size - t / ring->segments - ahead) % ring->size;
    const size_t begin = ring_chunk(ring, c), end = ring_chunk(ring, c + 1);
    const size_t skip = t % ring->segments * RING_SEGMENT, at = skip < end - begin ? begin + skip : end;
    *length = end - at < RING_SEGMENT ? end - at : RING_SEGMENT;
    return ring->data + at;
}

/* In the first half of its steps a ring adds up. */
static int ring_adds(const ring_t *ring, size_t t)
{
    return t < ring->messages / 2;
}

void ring_open(ring_t *ring, MPI_Comm comm, int rank, int size, float *data, size_t count, float *arrived)
{
    const size_t longest = (count + (size_t)size - 1) / (size_t)size;
    *ring = (ring_t){.comm = comm, .rank = (size_t)rank, .size = (size_t)size, .data = data, .count = count};
    ring->arrived = arrived;
    ring->segments = (longest + RING_SEGMENT - 1) / RING_SEGMENT;
    ring->messages = 2 * (ring->size - 1) * ring->segments;
    for (size_t i = 0; i < RING_WINDOW; i++)
        ring->receives[i] = ring->sends[i] = MPI_REQUEST_NULL;
}

static int ring_post_receive(ring_t *ring)
{
    const size_t t = ring->posted++, slot = t % RING_WINDOW;
    size_t length;
    float *into = ring_segment(ring, t, 1, &length);
    if (ring_adds(ring, t))
        into = ring->arrived + slot * RING_SEGMENT;
    return MPI_Irecv(into, (int)length, MPI_FLOAT, (int)((ring->rank + ring->size - 1) % ring->size), RING_TAG,
                     ring->comm, &ring->receives[slot]);
}

static int ring_start_send(ring_t *ring)
{
    const size_t t = ring->started++;
    size_t length;
    const float *from = ring_segment(ring, t, 0, &length);
    return MPI_Isend(from, (int)length, MPI_FLOAT, (int)((ring->rank + 1) % ring->size), RING_TAG, ring->comm,
                     &ring->sends[t % RING_WINDOW]);
}

static void ring_take(ring_t *ring)
{
    const size_t t = ring->received++;
    size_t length;
    float *sum = ring_segment(ring, t, 1, &length);
    if (!ring_adds(ring, t))
        return;
    const float *part = ring->arrived + t % RING_WINDOW * RING_SEGMENT;
    for (size_t i = 0; i < length; i++)
        sum[i] = part[i] + sum[i];
}

/* The final sum of a segment comes where this rank's part of it lies, which must have been sent. */
static int ring_may_post(const ring_t *ring)
{
    const size_t t = ring->posted;
    return t < ring->messages && t < ring->received + RING_WINDOW &&
           (ring_adds(ring, t) || t - ring->messages / 2 < ring->sent);
}

/* A segment goes on when the same one of the step before has come. No rank runs ahead of the one before it, whose messages
 * would pile up in MPI. */
static int ring_may_send(const ring_t *ring)
{
    const size_t t = ring->started;
    return t < ring->messages && t < ring->sent + RING_WINDOW && t < ring->received + RING_WINDOW &&
           (t < ring->segments || t - ring->segments < ring->received);
}

static int ring_test(MPI_Request *requests, size_t t, int *ended)
{
    return MPI_Test(&requests[t % RING_WINDOW], ended, MPI_STATUS_IGNORE);
}

int ring_advance(ring_t *ring, int *moved)
{
    int code = MPI_SUCCESS, ended = 1;
    const size_t before = ring->posted + ring->received + ring->started + ring->sent;
    while (code == MPI_SUCCESS && ring_may_post(ring))
        code = ring_post_receive(ring);
    while (code == MPI_SUCCESS && ring_may_send(ring))
        code = ring_start_send(ring);
    while (code == MPI_SUCCESS && ended && ring->sent < ring->started) {
        code = ring_test(ring->sends, ring->sent, &ended);
        ring->sent += code == MPI_SUCCESS && ended;
    }
    if (code == MPI_SUCCESS && ring->received < ring->posted) {
        code = ring_test(ring->receives, ring->received, &ended);
        if (code == MPI_SUCCESS && ended)
            ring_take(ring);
    }
    *moved = before != ring->posted + ring->received + ring->started + ring->sent;
    return code;
}

int ring_ended(const ring_t *ring)
{
    return ring->received == ring->messages && ring->sent == ring->messages;
}
