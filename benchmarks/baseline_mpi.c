/* What a user of MPI has without gtopk: all-reduces of floats and a bare exchange on MPI_COMM_WORLD, for the benchmarks to compare
 * with. A library of its own, which a program opens after the MPI module has started MPI: the benchmarks are linked with
 * no MPI. Blocking, without deadlines. Each function returns 0, or an MPI error code. */
#include <mpi.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SHOW __attribute__((visibility("default")))

SHOW int baseline_allreduce(float *values, float *scratch, uint64_t count);
SHOW int baseline_ring(float *values, float *scratch, uint64_t count);
SHOW int baseline_ring_bf16(float *values, float *scratch, uint64_t count);
SHOW int baseline_exchange(const void *out, void *in, uint64_t bytes, int distance);
SHOW int baseline_allgather(const void *out, void *in, uint64_t bytes);

int baseline_allreduce(float *values, float *scratch, uint64_t count)
{
    (void)scratch;
    return MPI_Allreduce(MPI_IN_PLACE, values, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

/* Each rank's share at once: reduce-scatter, then all-gather, as everybody writes it. scratch: as long as values. */
int baseline_ring(float *values, float *scratch, uint64_t count)
{
    int rank, size, code = MPI_SUCCESS;
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_size(MPI_COMM_WORLD, &size);
    const int right = (rank + 1) % size, left = (rank + size - 1) % size;
    for (int step = 0; step < 2 * (size - 1) && code == MPI_SUCCESS; step++) {
        const uint64_t out = (uint64_t)((rank - step + 2 * size) % size),
                       in = (uint64_t)((rank - step - 1 + 2 * size) % size), parts = (uint64_t)size;
        const uint64_t out_at = count * out / parts, out_end = count * (out + 1) / parts;
        const uint64_t in_at = count * in / parts, in_end = count * (in + 1) / parts;
        float *into = step < size - 1 ? scratch : values + in_at;
        code = MPI_Sendrecv(values + out_at, (int)(out_end - out_at), MPI_FLOAT, right, 0, into, (int)(in_end - in_at),
                            MPI_FLOAT, left, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (uint64_t i = in_at; into == scratch && i < in_end; i++)
            values[i] += scratch[i - in_at];
    }
    return code;
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float from_bf16(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The same ring with half the bytes: values and sums are rounded to bf16 at each step. */
int baseline_ring_bf16(float *values, float *scratch, uint64_t count)
{
    int rank, size, code = MPI_SUCCESS;
    uint16_t *half = (uint16_t *)scratch, *part = half + count;
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_size(MPI_COMM_WORLD, &size);
    const int right = (rank + 1) % size, left = (rank + size - 1) % size;
    for (uint64_t i = 0; i < count; i++)
        half[i] = to_bf16(values[i]);
    for (int step = 0; step < 2 * (size - 1) && code == MPI_SUCCESS; step++) {
        const uint64_t out = (uint64_t)((rank - step + 2 * size) % size),
                       in = (uint64_t)((rank - step - 1 + 2 * size) % size), parts = (uint64_t)size;
        const uint64_t out_at = count * out / parts, out_end = count * (out + 1) / parts;
        const uint64_t in_at = count * in / parts, in_end = count * (in + 1) / parts;
        uint16_t *into = step < size - 1 ? part : half + in_at;
        code = MPI_Sendrecv(half + out_at, (int)(out_end - out_at), MPI_UINT16_T, right, 0, into, (int)(in_end - in_at),
                            MPI_UINT16_T, left, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (uint64_t i = in_at; into == part && i < in_end; i++)
            half[i] = to_bf16(from_bf16(half[i]) + from_bf16(part[i - in_at]));
    }
    for (uint64_t i = 0; i < count; i++)
        values[i] = from_bf16(half[i]);
    return code;
}

/* `bytes` bytes to the rank whose number differs in the bit `distance` (a power of two) and from it, at once. */
int baseline_exchange(const void *out, void *in, uint64_t bytes, int distance)
{
    int rank, size;
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_size(MPI_COMM_WORLD, &size);
    if ((rank ^ distance) >= size)
        return MPI_SUCCESS;
    return MPI_Sendrecv(out, (int)bytes, MPI_BYTE, rank ^ distance, 1, in, (int)bytes, MPI_BYTE, rank ^ distance, 1,
                        MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* `bytes` bytes of each rank to all; `in` has room for as many times that as there are ranks. */
int baseline_allgather(const void *out, void *in, uint64_t bytes)
{
    return MPI_Allgather(out, (int)bytes, MPI_BYTE, in, (int)bytes, MPI_BYTE, MPI_COMM_WORLD);
}
