/* A set becomes a message. Blocks take slices of the set: the largest magnitude gives the scale, entries that decode to
 * zero are left out, and each entry that stays sets its own bits of the index part. */
#include "device/cuda/block.h"
#include "device/cuda/message.h"

static inline void bits_or(uint32_t *words, uint64_t bit, uint32_t value)
{
    const uint32_t shift = (uint32_t)(bit % 32);
    if (value << shift != 0)
        (void)atomicOr(&words[bit / 32], value << shift);
    if (shift != 0 && value >> (32 - shift) != 0)
        (void)atomicOr(&words[bit / 32 + 1], value >> (32 - shift));
}

static inline void index_write(uint8_t *part, uint32_t dim, uint32_t count, uint32_t i, uint32_t index)
{
    const uint32_t width = low_width(dim, count), low = index & ((1u << width) - 1);
    uint32_t *unary = (uint32_t *)(part + low_bytes(dim, count));
    bits_or((uint32_t *)part, (uint64_t)i * width, low);
    bits_or(unary, (uint64_t)(index >> width) + i, 1);
}

static inline int survives(uint32_t type, float value, float scale)
{
    return value_of_code(type, value_code(type, value, scale), scale) != 0.0f;
}

KERNEL(encode, encode_args)
{
    cuda_scratch_t *scratch = args.scratch;
    device_words_t *words = args.words;
    const uint32_t type = args.header.value_type, dim = args.header.dim;
    const int scaled = type == GTOPK_VALUE_F16 || type == GTOPK_VALUE_I8;
    const uint32_t held = *args.set.count;
    const int empty = words->nonfinite || !words->ok;
    const int room = empty || held <= args.most;
    const int failed = !words->ok || !room; /* then it is a last word */
    const uint32_t count = empty || !room ? 0 : held;
    const uint32_t flags = args.header.flags | (words->nonfinite ? WIRE_NONFINITE : 0u) |
                           (words->joined ? WIRE_JOINED : 0u) | (failed ? WIRE_ABORT : 0u);
    uint8_t *part = args.message + WIRE_HEADER_SIZE;

    /* Zeros where bits will be set, two barriers before, or one. */
    ROLLED
    for (uint64_t w = grid_thread(); w < args.index_words; w += grid_threads())
        ((uint32_t *)part)[w] = 0;
    if (scaled) {
        uint32_t largest = 0;
        ROLLED
        for (uint64_t i = grid_thread(); i < count; i += grid_threads()) {
            const uint32_t magnitude = convert_bits(args.set.value[i]) & MAGNITUDE;
            largest = magnitude > largest ? magnitude : largest;
        }
        block_max_into(largest, &scratch->largest);
        grid_sync(scratch);
    }

    const float scale = scaled ? scale_of(type, scratch->largest) : 1.0f;
    const uint32_t begin = (uint32_t)slice_begin(count, blockIdx.x), end = (uint32_t)slice_begin(count, blockIdx.x + 1);
    uint32_t kept = 0;
    ROLLED
    for (uint64_t i = begin + threadIdx.x; i < end; i += CUDA_THREADS)
        kept += (uint32_t)survives(type, args.set.value[i], scale);
    kept = block_sum(kept);
    if (threadIdx.x == 0)
        scratch->counts[blockIdx.x] = kept;
    grid_sync(scratch);

    const scan_t offset = grid_scan(scratch->counts);
    const uint32_t total = scan_total(offset);
    uint8_t *values = part + index_bytes(dim, total);
    uint32_t at = scan_before(offset);
    ROLLED
    for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
        const uint64_t i = tile + threadIdx.x;
        const float value = i < end ? args.set.value[i] : 0.0f;
        const uint32_t code = value_code(type, value, scale);
        const float decoded = value_of_code(type, code, scale);
        const int stays = i < end && decoded != 0.0f;
        const scan_t scan = block_scan((uint32_t)stays);
        if (stays) {
            const uint32_t to = at + scan_before(scan), index = args.set.index[i];
            args.decoded.index[to] = index;
            args.decoded.value[to] = decoded;
            code_store(values, type, to, code);
            index_write(part, dim, total, to, index);
        }
        at += scan_total(scan);
    }
    if (is_first_thread()) {
        header_write(&args.header, total, flags, failed ? WIRE_FAILED_STEP : args.header.attachment, scale,
                     args.message);
        if (flags & WIRE_TAIL)
            tail_write(args.message);
        *args.decoded.count = total;
        if (scaled)
            scratch->largest = 0;
        if (!room)
            words_fail(words, DEVICE_NO_ROOM);
    }
}

KERNEL(address, address_args)
{
    if (is_first_thread()) {
        store16(args.message + 8, args.round);
        store32(args.message + 16, args.sender);
        store32(args.message + 32, args.k);
        if (!args.words->ok) { /* a last word */
            args.message[7] |= WIRE_ABORT;
            store32(args.message + 12, WIRE_FAILED_STEP);
        }
        if (args.message[7] & WIRE_TAIL)
            tail_write(args.message);
    }
}
