/* What the library uses of the C library's header; libc.c defines it. */

#ifndef GBNN_STRING_H
#define GBNN_STRING_H

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);
void *memchr(const void *in, int byte, size_t size);
size_t strlen(const char *text);
char *strchr(const char *text, int letter);

#endif
