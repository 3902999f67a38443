/* A message becomes a set, if it is the awaited one and each of its bits is as an encoder writes it. Blocks take slices of
 * the unary part: ones are counted, and then each of them is an entry. A thread takes four bits, in which there is one or
 * two. */
#include "device/cuda/block.h"
#include "device/cuda/message.h"

/* Field i of `width` bits. The low part is followed by at least eight bytes. */
static inline uint32_t low_read(const uint8_t *part, uint64_t i, uint32_t width)
{
    const uint64_t bit = i * width;
    const uint8_t *at = part + bit / 32 * 4;
    const uint64_t both = load32(at) | (uint64_t)load32(at + 4) << 32;
    return (uint32_t)(both >> bit % 32) & ((1u << width) - 1);
}

/* Bits behind the last field, which are to be zero. */
static inline uint32_t low_padding(const uint8_t *part, uint32_t count, uint32_t width)
{
    const uint64_t bits = (uint64_t)count * width;
    if (bits % 64 == 0)
        return 0;
    const uint8_t *last = part + bits / 64 * 8;
    const uint64_t word = load32(last) | (uint64_t)load32(last + 4) << 32;
    return word >> bits % 64 != 0;
}

/* Entry i, at bit `bit` of the unary part. Returns 1 when it is none that an encoder writes. */
static inline uint32_t entry_decode(const decode_args_t *args, const header_t *header, const uint8_t *unary,
                                    const uint8_t *values, uint64_t i, uint64_t bit)
{
    const uint8_t *part = args->message + WIRE_HEADER_SIZE;
    const uint32_t low = header->width == 0 ? 0 : low_read(part, i, header->width);
    const uint64_t index = (bit - i) << header->width | low;
    const float value = value_of_code(header->type, code_load(values, header->type, i), header->scale);
    args->out.index[i] = (uint32_t)index;
    args->out.value[i] = value;
    uint32_t bad = index >= header->dim || !is_finite(value) || value == 0.0f;
    /* The one before has the same upper bits just when its bit is the one below. */
    if (i > 0 && bit > 0 && unary[(bit - 1) / 8] >> (bit - 1) % 8 & 1)
        bad |= header->width == 0 || low <= low_read(part, i - 1, header->width);
    return bad;
}

static inline uint32_t four_bits(const uint8_t *unary, uint64_t which)
{
    return (uint32_t)unary[which / 2] >> which % 2 * 4 & 15u;
}

KERNEL(decode, decode_args)
{
    __shared__ header_t header;
    __shared__ uint32_t head[WIRE_HEADER_SIZE / 4];
    cuda_scratch_t *scratch = args.scratch;
    if (is_first_thread()) /* one alone: it is memory of the host */
        scratch->halted = is_halted(scratch);
    if (threadIdx.x < WIRE_HEADER_SIZE / 4 && args.capacity >= WIRE_HEADER_SIZE)
        head[threadIdx.x] = load32(args.message + 4 * threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0)
        header_read((const uint8_t *)head, args.message, args.capacity, &args.expect, &header);
    __syncthreads();
    const int room = header.good && !header.torn && header.count <= args.out.capacity;
    const uint32_t count = room ? header.count : 0;
    const uint8_t *part = args.message + WIRE_HEADER_SIZE, *unary = part + low_bytes(header.dim, count);
    const uint64_t bytes = unary_bytes(header.dim, count);
    const uint8_t *values = unary + bytes;

    const uint64_t begin = slice_begin(2 * bytes, blockIdx.x), end = slice_begin(2 * bytes, blockIdx.x + 1);
    uint32_t ones = 0, bad = 0;
    ROLLED
    for (uint64_t b = begin + threadIdx.x; b < end; b += CUDA_THREADS)
        ones += (uint32_t)__popc(four_bits(unary, b));
    ones = block_sum(ones);
    if (threadIdx.x == 0)
        scratch->counts[blockIdx.x] = ones;
    grid_sync(scratch);

    const scan_t offset = grid_scan(scratch->counts);
    uint32_t at = scan_before(offset);
    bad = count != 0 && scan_total(offset) != count;
    if (!bad) {
        ROLLED
        for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
            const uint64_t b = tile + threadIdx.x;
            uint32_t bits = b < end ? four_bits(unary, b) : 0;
            const scan_t scan = block_scan((uint32_t)__popc(bits));
            uint64_t i = (uint64_t)at + scan_before(scan);
            ROLLED
            for (; bits != 0; bits &= bits - 1, i++)
                bad |= entry_decode(&args, &header, unary, values, i, 4 * b + (uint32_t)__ffs((int)bits) - 1);
            at += scan_total(scan);
        }
    }
    if (is_first_thread() && count != 0)
        bad |= low_padding(part, count, header.width);
    if (bad)
        (void)atomicOr(&scratch->faults, 1u);
    if (!grid_is_done(scratch))
        return;

    device_words_t *words = args.words;
    const uint32_t faults = scratch->faults, halted = scratch->halted;
    scratch->faults = 0;
    *args.out.count = faults || halted ? 0 : count;
    if (halted) {
        words_fail(words, DEVICE_HALTED);
        return;
    }
    if (!header.good || header.torn) {
        message_blame(words, header.good ? DEVICE_BAD_TAIL : DEVICE_BAD_HEADER, args.message, args.capacity,
                      &args.expect);
        return;
    }
    words->nonfinite |= (header.flags & WIRE_NONFINITE) != 0;
    words->joined &= (header.flags & WIRE_JOINED) != 0;
    if (!room)
        words_fail(words, DEVICE_NO_ROOM);
    else if (faults)
        message_blame(words, DEVICE_BAD_PAYLOAD, args.message, args.capacity, &args.expect);
}
