/* The few functions of a C library that the decoder uses, for WebAssembly without one.
 *
 * Memory is a stack of blocks: one that is freed is used again once all blocks above it are free. The decoder frees what
 * it takes for a tensor before that tensor's weights are freed, so the stack stays as small as it can be.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 65536u
#define ALIGNMENT 16u

typedef struct block {
    struct block *below;
    size_t is_free;
} block;

extern unsigned char __heap_base;
static block *top;
static uintptr_t stop; /* of the top block */

static bool grow_to(uintptr_t end) {
    uintptr_t pages = (end - 1) / PAGE + 1, present = __builtin_wasm_memory_size(0);
    return pages <= present || __builtin_wasm_memory_grow(0, pages - present) != SIZE_MAX;
}

void *malloc(size_t size) {
    if (stop == 0) stop = ((uintptr_t)&__heap_base + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (size > SIZE_MAX - 2 * PAGE - stop) return NULL;
    block *made = (block *)stop;
    uintptr_t end = (stop + ALIGNMENT + size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!grow_to(end)) return NULL;
    made->below = top;
    made->is_free = false;
    top = made;
    stop = end;
    return (unsigned char *)made + ALIGNMENT;
}

void free(void *memory) {
    if (memory == NULL) return;
    ((block *)((unsigned char *)memory - ALIGNMENT))->is_free = true;
    for (; top != NULL && top->is_free; top = top->below) stop = (uintptr_t)top;
}

void *calloc(size_t count, size_t size) {
    if (size > 0 && count > SIZE_MAX / size) return NULL;
    void *memory = malloc(count * size);
    return memory == NULL ? NULL : memset(memory, 0, count * size);
}

/* With bulk memory operations, these are instructions. */
void *memcpy(void *to, const void *from, size_t size) { return __builtin_memcpy(to, from, size); }

void *memmove(void *to, const void *from, size_t size) { return __builtin_memmove(to, from, size); }

void *memset(void *to, int byte, size_t size) { return __builtin_memset(to, byte, size); }

int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *one = a, *other = b;
    for (; size > 0; size--, one++, other++) {
        if (*one != *other) return *one < *other ? -1 : 1;
    }
    return 0;
}

void *memchr(const void *in, int byte, size_t size) {
    for (const unsigned char *at = in; size > 0; size--, at++) {
        if (*at == (unsigned char)byte) return (void *)(uintptr_t)at;
    }
    return NULL;
}

size_t strlen(const char *text) {
    size_t size = 0;
    while (text[size] != 0) size++;
    return size;
}

char *strchr(const char *text, int letter) {
    for (;; text++) {
        if (*text == (char)letter) return (char *)(uintptr_t)text;
        if (*text == 0) return NULL;
    }
}
