/* Texts for people, UTF-8, in arrays that may be too short for them: cut between characters, never within one. */
#ifndef GTOPK_UTIL_TEXT_H
#define GTOPK_UTIL_TEXT_H

#include <stdarg.h>
#include <stddef.h>

/* vsnprintf into text[0..size), size >= 1. What does not fit is left out from the first character that does not fit
 * whole. */
void text_format(char *text, size_t size, const char *format, va_list args) __attribute__((format(printf, 3, 0)));

/* For a text that somebody else may have cut at any byte: takes off the beginning of a character at its end. */
void text_drop_cut_character(char *text);

#endif
