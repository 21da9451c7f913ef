/* What the library uses of the C library's header; libc.c defines it. */

#ifndef GBNN_STDLIB_H
#define GBNN_STDLIB_H

#include <stddef.h>

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *memory);

#endif
