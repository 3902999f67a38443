/* What the exchange does to messages of its own: find their length, send them on under another name. */
#include "wire/wire.h"

static uint32_t load_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

void wire_readdress(uint8_t *message, uint32_t sender, uint16_t round)
{
    message[8] = (uint8_t)(round & 0xff);
    message[9] = (uint8_t)(round >> 8);
    for (int i = 0; i < 4; i++)
        message[16 + i] = (uint8_t)(sender >> (8 * i) & 0xff);
}

size_t wire_own_size(const uint8_t *message)
{
    const uint8_t value_type = message[5];
    const uint32_t dim = load_u32(message + 36), count = load_u32(message + 40);
    if (value_type == WIRE_VALUE_BYTES)
        return WIRE_HEADER_SIZE + (size_t)count;
    return wire_message_size(dim, count, value_type);
}
