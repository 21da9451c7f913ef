#include "vectors.h"

#include "dense.h"
#include "maths.h"

#define LARGEST_EXPONENT 4096
#define LARGEST_ORDER 52
#define LARGEST_CENTRE ((int64_t)1 << 52)
#define ROOT_OF_TWO 1.4142135623730951

static const vector FIRST = {LINEAR, -16, 3, 0, 0, 0, 0, 0};

/* The last part of a name. */
static span role_of(const gbnn_tensor *tensor) {
    size_t start = tensor->name_bytes;
    while (start > 0 && tensor->name[start - 1] != '.') start--;
    return span_of(tensor->name + start, tensor->name_bytes - start);
}

typedef struct {
    const manifest *of;
    const vector *vectors;
} roles;

static int compare_roles(const void *context, uint32_t a, uint32_t b) {
    const roles *in = context;
    const gbnn_tensor *tensors = in->of->tensors;
    int order = compare_texts(role_of(&tensors[in->vectors[a].tensor]), role_of(&tensors[in->vectors[b].tensor]));
    return order != 0 ? order : a < b ? -1 : a > b;
}

/* For each vector the number of the one before it in its role, or UINT32_MAX. */
static uint32_t *find_last(const manifest *of, const vector *vectors, size_t count, arena *memory) {
    const roles context = {of, vectors};
    uint32_t *sorted = arena_take(memory, count + 1, sizeof(uint32_t));
    uint32_t *last = arena_take(memory, count + 1, sizeof(uint32_t));
    if (sorted == NULL || last == NULL) return NULL;
    for (uint32_t index = 0; index < count; index++) sorted[index] = index;
    sort_numbers(sorted, count, compare_roles, &context);
    for (size_t index = 0; index < count; index++) {
        uint32_t here = sorted[index], before = index > 0 ? sorted[index - 1] : UINT32_MAX;
        bool is_first = before == UINT32_MAX || compare_texts(role_of(&of->tensors[vectors[here].tensor]),
                                                              role_of(&of->tensors[vectors[before].tensor])) != 0;
        last[here] = is_first ? UINT32_MAX : before;
    }
    return last;
}

static gbnn_code read_grid(bits *from, uint64_t size, vector *into) {
    into->exponent += (int32_t)clamped((double)bits_zz(from, 0), 1e6);
    into->order += (int32_t)clamped((double)bits_zz(from, 0), 1e6);
    int64_t step = bits_zz(from, 2);
    if (from->failed) return GBNN_ERROR_BITS;
    if (into->exponent <= -LARGEST_EXPONENT || into->exponent >= LARGEST_EXPONENT) return GBNN_ERROR_UNSHARED;
    if (into->order < 0 || into->order > LARGEST_ORDER) return GBNN_ERROR_UNSHARED;
    if (step <= -2 * LARGEST_CENTRE || step >= 2 * LARGEST_CENTRE) return GBNN_ERROR_UNSHARED;
    into->centre += step;
    if (into->centre <= -LARGEST_CENTRE || into->centre >= LARGEST_CENTRE) return GBNN_ERROR_UNSHARED;
    if (into->order > 3 && into->centre != 0) {
        int64_t most = INT64_MAX >> (into->order - 3);
        if (into->centre > most || into->centre < -most - 1) return GBNN_ERROR_UNSHARED;
    }
    into->place = from->place;
    if (into->order == 0) return GBNN_OK;
    if (size > from->end - from->place) return GBNN_ERROR_BITS; /* a quotient takes one bit at least */
    for (uint64_t index = 0; index < size && !from->failed; index++) bits_quotient(from);
    into->rest_place = from->place;
    bits_skip(from, size, (unsigned)into->order - 1);
    return from->failed ? GBNN_ERROR_BITS : GBNN_OK;
}

static gbnn_code read_vector(bits *from, const gbnn_tensor *tensor, vector *into) {
    into->mode = (vector_mode)bits_u(from, 2);
    if (into->mode != EXACT) return read_grid(from, tensor->size, into);
    unsigned width = (unsigned)bits_u(from, 7);
    if (from->failed) return GBNN_ERROR_BITS;
    if (width != 8 * gbnn_dtype_bytes(tensor->dtype)) return GBNN_ERROR_UNSHARED;
    into->place = from->place;
    bits_skip(from, tensor->size, width);
    return from->failed ? GBNN_ERROR_BITS : GBNN_OK;
}

/* Finds the variances of each relative vector: `running_var` of the same module. */
static gbnn_code find_variances(const manifest *of, const uint32_t *numbers, size_t count, vector *vectors) {
    for (size_t index = 0; index < count; index++) {
        if (vectors[index].mode != RELATIVE) continue;
        const gbnn_tensor *tensor = &of->tensors[vectors[index].tensor];
        span prefix = span_of(tensor->name, tensor->name_bytes - role_of(tensor).size);
        size_t found = manifest_find(of, prefix, span_of("running_var", 11));
        if (found == SIZE_MAX || of->tensors[found].tied_to != GBNN_NOT_TIED) return GBNN_ERROR_UNSHARED;
        bool fits = of->tensors[found].kind == GBNN_KIND_UNSHARED && of->tensors[found].size == tensor->size;
        if (!fits || vectors[numbers[found]].mode != LOGARITHMIC) return GBNN_ERROR_UNSHARED;
        vectors[index].variance = numbers[found];
    }
    return GBNN_OK;
}

gbnn_code vectors_read(span bytes, const manifest *of, const uint32_t *numbers, size_t count, vector *into) {
    bits from = bits_of(bytes);
    arena scratch = {NULL};
    uint32_t *last = find_last(of, into, count, &scratch);
    gbnn_code code = last == NULL ? GBNN_ERROR_NO_MEMORY : GBNN_OK;
    for (size_t index = 0; index < count && code == GBNN_OK; index++) {
        size_t tensor = into[index].tensor;
        into[index] = last[index] == UINT32_MAX ? FIRST : into[last[index]];
        into[index].tensor = tensor;
        code = read_vector(&from, &of->tensors[tensor], &into[index]);
    }
    arena_free(&scratch);
    return code == GBNN_OK ? find_variances(of, numbers, count, into) : code;
}

/* A reader of the codes of a vector on a grid. */
typedef struct {
    bits quotients, rests;
    unsigned order;
    uint64_t centre;
    double step;
    vector_mode mode;
} reader;

static reader reader_of(span bytes, const vector *of) {
    int32_t octaves = of->exponent >= 0 ? of->exponent / 2 : -((1 - of->exponent) / 2);
    double step = scaled(of->exponent % 2 == 0 ? 1.0 : ROOT_OF_TWO, octaves);
    reader result = {bits_of(bytes), bits_of(bytes), (unsigned)of->order, (uint64_t)of->centre, step, of->mode};
    if (of->order > 3) result.centre <<= of->order - 3;
    result.step = clamped(step, LARGEST_DOUBLE);
    result.quotients.place = of->place;
    result.rests.place = of->rest_place;
    return result;
}

/* The next code; sums are those of integers modulo 2^64. */
static int64_t next_code(reader *from) {
    uint64_t rest = 0;
    if (from->order > 0) {
        rest = bits_quotient(&from->quotients) << (from->order - 1);
        rest += bits_u(&from->rests, from->order - 1);
        bool is_odd = rest & 1;
        int64_t half = (int64_t)(rest + is_odd) >> 1;
        rest = is_odd ? 0 - (uint64_t)half : (uint64_t)half;
    }
    return (int64_t)(rest + from->centre);
}

/* The next value, before a relative one is multiplied with the root of its variance. */
static double next_value(reader *from) {
    double product = (double)next_code(from) * from->step;
    return from->mode == LOGARITHMIC ? power_of_two(product) : product;
}

void vector_decode(span bytes, const vector *vectors, size_t number, const gbnn_tensor *tensor, unsigned char *out) {
    const vector *of = &vectors[number];
    size_t width = gbnn_dtype_bytes(tensor->dtype);
    if (of->mode == EXACT) {
        bits from = bits_of(bytes);
        from.place = of->place;
        for (size_t index = 0; index < (size_t)tensor->size; index++) {
            store_pattern(out + width * index, width, bits_u(&from, 8 * (unsigned)width));
        }
        return;
    }
    reader from = reader_of(bytes, of), variances = reader_of(bytes, &vectors[of->mode == RELATIVE ? of->variance : number]);
    for (size_t index = 0; index < (size_t)tensor->size; index++) {
        double value = next_value(&from);
        if (of->mode == RELATIVE) value *= square_root(clamped(next_value(&variances), LARGEST_DOUBLE));
        store_pattern(out + width * index, width, pattern_of(clamped(value, LARGEST_DOUBLE), tensor->dtype));
    }
}
