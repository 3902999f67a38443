/* UTF-8: the first byte of a character says how many bytes it has, and the others all look like 10xxxxxx. */
#include "util/text.h"

#include <stdio.h>
#include <string.h>

/* 0: no first byte of a character. */
static size_t character_bytes(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first < 0xe0)
        return 2;
    if (first >= 0xe0 && first < 0xf0)
        return 3;
    return first >= 0xf0 && first < 0xf5 ? 4 : 0;
}

void text_drop_cut_character(char *text)
{
    const size_t length = strlen(text);
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        const unsigned char byte = (unsigned char)text[length - back];
        if ((byte & 0xc0) == 0x80)
            continue;
        if (character_bytes(byte) > back)
            text[length - back] = 0;
        return;
    }
}

void text_format(char *text, size_t size, const char *format, va_list args)
{
    const int length = vsnprintf(text, size, format, args);
    if (length >= 0 && (size_t)length >= size)
        text_drop_cut_character(text);
}
