/* CRC-32 of zlib and gzip. */

#include "container.h"

#define POLYNOMIAL 0xEDB88320u
#define WIDE 8

/* Entry [i][b]: the checksum's change by byte b with i zero bytes behind it. */
static void fill(uint32_t table[WIDE][256]) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; bit++) rest = rest >> 1 ^ (rest & 1 ? POLYNOMIAL : 0);
        table[0][byte] = rest;
    }
    for (int index = 1; index < WIDE; index++) {
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = table[index - 1][byte];
            table[index][byte] = before >> 8 ^ table[0][before & 255];
        }
    }
}

uint32_t crc32_of(span bytes) {
    uint32_t table[WIDE][256], rest = 0xFFFFFFFFu;
    fill(table);
    for (; bytes.size >= WIDE; span_take(&bytes, WIDE)) {
        uint32_t low = rest ^ load32(bytes.data), high = load32(bytes.data + 4);
        rest = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24];
        rest ^= table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
    }
    for (size_t index = 0; index < bytes.size; index++) rest = rest >> 8 ^ table[0][(rest ^ bytes.data[index]) & 255];
    return ~rest;
}
