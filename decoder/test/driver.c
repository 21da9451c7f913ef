/* Reads artifacts from standard input, one after the other, for tests that read many: four bytes of length, little-endian,
 * and the bytes. Answers each with a line: the error code, the member, and the CRC-32 of the tensors' bytes in order. */

#include <stdio.h>
#include <stdlib.h>

#include "../src/container.h"

static double next_normal(void *context) {
    double *last = context;
    return *last = *last > 2 ? -2 : *last + 0.125;
}

/* Decodes all tensors: in order, then each again as a draw, and then without order in a file opened anew. */
static gbnn_code decode_all(gbnn_file *file, int backwards, uint32_t *checksum) {
    double normal = 0;
    for (size_t member = 0; member < gbnn_member_count(file); member++) {
        size_t count = gbnn_tensor_count(file, member);
        for (size_t place = 0; place < count; place++) {
            size_t index = backwards ? count - 1 - place : place;
            gbnn_tensor tensor = gbnn_describe(file, member, index);
            unsigned char *weights = malloc((size_t)tensor.size_bytes + 1);
            if (weights == NULL) return GBNN_ERROR_NO_MEMORY;
            gbnn_code code = gbnn_decode(file, member, index, weights);
            span bytes = span_of(weights, (size_t)tensor.size_bytes);
            if (code == GBNN_OK && !backwards) *checksum = 31 * *checksum + crc32_of(bytes);
            if (code == GBNN_OK && backwards) *checksum += crc32_of(bytes);
            bool is_tied = tensor.tied_to != GBNN_NOT_TIED;
            if (code == GBNN_OK && !backwards && !is_tied) {
                code = gbnn_draw(file, member, index, next_normal, &normal, weights);
            }
            free(weights);
            if (code != GBNN_OK) return code;
        }
    }
    return GBNN_OK;
}

/* Whether any order of decoding gives the same weights. */
static void check_order(gbnn_file *file, const unsigned char *data, size_t size) {
    uint32_t sum = 0, backwards = 0;
    gbnn_file *again;
    for (size_t member = 0; member < gbnn_member_count(file); member++) {
        for (size_t index = 0; index < gbnn_tensor_count(file, member); index++) {
            gbnn_tensor tensor = gbnn_describe(file, member, index);
            unsigned char *weights = malloc((size_t)tensor.size_bytes + 1);
            if (weights == NULL || gbnn_decode(file, member, index, weights) != GBNN_OK) abort();
            sum += crc32_of(span_of(weights, (size_t)tensor.size_bytes));
            free(weights);
        }
    }
    if (gbnn_open(data, size, &again, NULL) != GBNN_OK || decode_all(again, 1, &backwards) != GBNN_OK) abort();
    if (sum != backwards) abort();
    gbnn_close(again);
}

int gbnn_read_once(const unsigned char *data, size_t size, size_t *member, uint32_t *checksum);

int gbnn_read_once(const unsigned char *data, size_t size, size_t *member, uint32_t *checksum) {
    gbnn_file *file;
    gbnn_code code = gbnn_open(data, size, &file, member);
    *checksum = 0;
    if (code == GBNN_OK) code = decode_all(file, 0, checksum);
    if (code == GBNN_OK) check_order(file, data, size);
    gbnn_close(file);
    return (int)code;
}

#ifdef GBNN_FUZZ

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t member;
    uint32_t checksum;
    gbnn_read_once(data, size, &member, &checksum);
    return 0;
}

#else

int main(void) {
    unsigned char head[4];
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        size_t size = load32(head), member;
        uint32_t checksum;
        unsigned char *data = malloc(size > 0 ? size : 1); /* of this size exactly, so that reads past it are seen */
        if (data == NULL || fread(data, 1, size, stdin) != size) return 1;
        int code = gbnn_read_once(data, size, &member, &checksum);
        printf("%d %d %lu\n", code, member == SIZE_MAX ? -1 : (int)member, (unsigned long)checksum);
        fflush(stdout);
        free(data);
    }
    return 0;
}

#endif
