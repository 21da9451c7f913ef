#include "bank.h"

#include "bits.h"
#include "maths.h"

#define MOST_COMPONENTS ((uint64_t)1 << 17)
#define LARGEST_CODE ((int64_t)1 << 62)
#define LARGEST_EIGHTHS (8 * 700)
#define EXPONENT_OFFSET 2048
#define ONE (EXPONENT_OFFSET << 4)
#define LARGEST_SHORT (((1024 + EXPONENT_OFFSET) << 4) - 1)
#define VALUE_BITS 24

static gbnn_code read_means(bits *from, int exponent, bank *into) {
    int64_t code = bits_zz(from, 8);
    unsigned order = (unsigned)bits_u(from, 6);
    for (uint32_t k = 0;; k++) {
        if (from->failed) return GBNN_ERROR_BITS;
        if (code > LARGEST_CODE || code < -LARGEST_CODE) return GBNN_ERROR_BANK;
        into->means[k] = scaled((double)code, exponent);
        bool is_finite = into->means[k] < INFINITE && into->means[k] > -INFINITE;
        if (!is_finite || (k > 0 && into->means[k] <= into->means[k - 1])) return GBNN_ERROR_BANK;
        if (k + 1 == into->size) return GBNN_OK;
        uint64_t gap = bits_eg(from, order);
        if (gap >= (uint64_t)(LARGEST_CODE - code)) return GBNN_ERROR_BANK;
        code += 1 + (int64_t)gap;
    }
}

static gbnn_code read_deviations(bits *from, bank *into) {
    int64_t eighths = 0;
    for (uint32_t k = 0; k < into->size; k++) {
        int64_t step = bits_zz(from, 1);
        if (from->failed) return GBNN_ERROR_BITS;
        if (step <= -2 * LARGEST_EIGHTHS || step >= 2 * LARGEST_EIGHTHS) return GBNN_ERROR_BANK;
        eighths += step;
        if (eighths <= -LARGEST_EIGHTHS || eighths >= LARGEST_EIGHTHS) return GBNN_ERROR_BANK;
        into->eighths[k] = (int32_t)eighths;
    }
    return GBNN_OK;
}

/* Short floats; only checked if there is no place for them. */
static gbnn_code read_short_floats(bits *from, uint64_t count, double *into) {
    int64_t code = ONE;
    unsigned order = (unsigned)bits_u(from, 4);
    for (uint64_t index = 0; index < count; index++) {
        int64_t step = bits_zz(from, order);
        if (from->failed) return GBNN_ERROR_BITS;
        if (step < -LARGEST_SHORT || step > LARGEST_SHORT) return GBNN_ERROR_BANK;
        code += step;
        if (code < 0 || code > LARGEST_SHORT) return GBNN_ERROR_BANK;
        double fraction = 1.0 + (double)(code & 15) / 16;
        if (into != NULL) into[index] = code == 0 ? 0.0 : scaled(fraction, (int)(code >> 4) - EXPONENT_OFFSET);
    }
    return from->failed ? GBNN_ERROR_BITS : GBNN_OK;
}

/* The means as integers, the largest with 24 bits. */
static void find_values(bank *into) {
    double low = into->means[0], high = into->means[into->size - 1], largest = high > -low ? high : -low;
    if (largest == 0) return;
    int exponent = VALUE_BITS - exponent_of(largest);
    for (uint32_t k = 0; k < into->size; k++) into->values[k] = (int32_t)scaled(into->means[k], exponent);
}

gbnn_code bank_read(span section, uint64_t n_shared, arena *memory, bank *into) {
    bits from = bits_of(section);
    int exponent = (int)bits_u(&from, 12) - EXPONENT_OFFSET;
    uint64_t more = bits_eg(&from, 8);
    if (from.failed) return GBNN_ERROR_BITS;
    /* Each component has three codes of at least one bit, each tensor two. */
    if (more >= MOST_COMPONENTS || more > from.end || n_shared > from.end) return GBNN_ERROR_BANK;
    into->size = (uint32_t)more + 1;
    into->means = arena_take(memory, into->size, sizeof(double));
    into->eighths = arena_take(memory, into->size, sizeof(int32_t));
    into->values = arena_take(memory, (uint64_t)into->size + 1, sizeof(int32_t));
    into->scales = arena_take(memory, n_shared + 1, sizeof(double));
    if (into->means == NULL || into->eighths == NULL || into->values == NULL || into->scales == NULL) {
        return GBNN_ERROR_NO_MEMORY;
    }
    TRY(read_means(&from, exponent, into));
    TRY(read_deviations(&from, into));
    TRY(read_short_floats(&from, n_shared, into->scales));
    TRY(read_short_floats(&from, n_shared, NULL));
    find_values(into);
    return GBNN_OK;
}
