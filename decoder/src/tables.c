#include "tables.h"

/* Reads the levels of a table into (K + 1) numbers, or only checks them. */
static gbnn_code read_levels(bits *from, uint32_t n_components, table *of, int64_t *levels) {
    uint64_t first = bits_eg(from, 4), more = bits_eg(from, 4);
    if (from->failed) return GBNN_ERROR_BITS;
    if (first > n_components || more > n_components - first) return GBNN_ERROR_TABLE;
    unsigned order = (unsigned)bits_u(from, 2);
    int64_t level = (int64_t)bits_u(from, 8);
    of->n_live = 0;
    of->has_outliers = false;
    for (uint64_t index = 0;; index++) {
        if (from->failed) return GBNN_ERROR_BITS;
        if (level < 0) return GBNN_ERROR_TABLE;
        if (levels != NULL) levels[first + index] = level;
        if (level > 0) {
            of->n_live++;
            of->only = (uint32_t)(first + index);
            of->has_outliers = of->only == n_components;
        }
        if (index == more) break;
        int64_t step = bits_zz(from, order);
        if (step > 0 && level > INT64_MAX - step) return GBNN_ERROR_TABLE;
        level += step;
    }
    return of->n_live > 0 ? GBNN_OK : GBNN_ERROR_TABLE;
}

static void read_rule(bits *from, bool has_kernel, rule *into) {
    into->start = (int32_t)bits_u(from, 7);
    if (has_kernel) {
        into->left = (int32_t)bits_u(from, 6) - 32;
        into->above = (int32_t)bits_u(from, 6) - 32;
        into->corner = (int32_t)bits_u(from, 6) - 32;
    }
    into->tail = (int32_t)bits_u(from, 2);
    into->offset = (int32_t)bits_u(from, 3) - 5;
    into->floor = (int32_t)bits_u(from, 7);
}

void kernel_of(const gbnn_tensor *tensor, uint64_t *taps, uint64_t *width) {
    *taps = 1;
    for (size_t index = 2; index < tensor->dimensions; index++) *taps *= tensor->shape[index];
    *width = tensor->dimensions > 2 ? tensor->shape[tensor->dimensions - 1] : 1;
}

gbnn_code table_read(bits *from, const gbnn_tensor *tensor, uint32_t n_components, int version, table *into) {
    uint64_t taps, width;
    kernel_of(tensor, &taps, &width);
    into->place = from->place;
    TRY(read_levels(from, n_components, into, NULL));
    if (into->n_live > 1) {
        into->has_trellis = version == 2 && bits_u(from, 1) == 1;
        into->has_rule = bits_u(from, 1) == 1;
        if (into->has_rule) read_rule(from, taps > 1, &into->rule);
    }
    return from->failed ? GBNN_ERROR_BITS : GBNN_OK;
}

/* Adds the symbols that a parity allows, with their weights: 30 bits for the largest. */
static void add_symbols(models *into, unsigned parity, const table *of, const bank *components, const int64_t *levels) {
    static const int64_t mantissas[4] = {16, 19, 23, 27};
    uint32_t start = parity == 0 ? 0 : into->count[0], stop = start;
    int64_t largest = 0;
    for (uint32_t k = 0; k <= components->size; k++) {
        if (levels[k] == 0 || (of->has_trellis && k != components->size && (k & 1) != parity)) continue;
        into->symbols[stop].value = components->values[k];
        into->symbols[stop].id = k;
        into->weights[stop++] = levels[k] - 1;
        largest = max64(largest, (levels[k] - 1) / 4);
    }
    for (uint32_t index = start; index < stop; index++) {
        int64_t octaves = largest - into->weights[index] / 4;
        into->weights[index] = octaves > 62 ? 0 : mantissas[into->weights[index] % 4] << 25 >> octaves;
    }
    into->start[parity] = start;
    into->count[parity] = stop - start;
}

#define KEPT_ENTRIES ((size_t)1 << 20) /* frequencies that are kept for slots that recur */
#define FEWEST_ROWS 16

static gbnn_code make_room(models *into, uint32_t n_slots, arena *memory) {
    uint32_t most = into->count[0] > into->count[1] ? into->count[0] : into->count[1];
    into->stride = 1 + TOP_WORDS + (size_t)most + PADDING;
    size_t rows = KEPT_ENTRIES / into->stride;
    into->n_slots = n_slots;
    for (into->shift = 0; most >> into->shift > UINT8_MAX;) into->shift++;
    into->n_rows = rows < FEWEST_ROWS ? FEWEST_ROWS : rows > n_slots ? n_slots : (uint32_t)rows;
    into->places = arena_take(memory, n_slots, sizeof(int32_t));
    into->rows = arena_take_room(memory, (uint64_t)into->n_rows * into->stride, sizeof(uint32_t));
    into->scratch = arena_take(memory, most, sizeof(int64_t));
    if (into->places == NULL || into->rows == NULL || into->scratch == NULL) return GBNN_ERROR_NO_MEMORY;
    memset(into->places, 0xFF, n_slots * sizeof(int32_t));
    return GBNN_OK;
}

gbnn_code models_make(span tables, const table *of, const bank *components, int version, arena *memory, models *into) {
    table again;
    bits from = bits_of(tables);
    from.place = of->place;
    int64_t *levels = arena_take(memory, (uint64_t)components->size + 1, sizeof(int64_t));
    memset(into, 0, sizeof *into);
    into->symbols = arena_take(memory, (uint64_t)of->n_live + 1, sizeof(symbol)); /* the outlier may occur twice */
    into->weights = arena_take(memory, (uint64_t)of->n_live + 1, sizeof(int64_t));
    if (levels == NULL || into->symbols == NULL || into->weights == NULL) return GBNN_ERROR_NO_MEMORY;
    TRY(read_levels(&from, components->size, &again, levels));
    into->by_rule = of->has_rule;
    into->outlier = components->size;
    into->tail = of->rule.tail;
    into->offset = of->rule.offset;
    into->floor = of->has_rule ? ex(4 * of->rule.floor) : 0;
    add_symbols(into, 0, of, components, levels);
    if (of->has_trellis) add_symbols(into, 1, of, components, levels);
    uint32_t parities = version == 2 ? 2 : 1;
    return make_room(into, parities * (of->has_rule ? N_CONTEXTS : 1), memory);
}

/* a / b towards zero, for 0 <= a and 0 < b below 2^62 and quotients below 2^52. */
static inline int64_t quotient(int64_t a, int64_t b) {
    int64_t result = (int64_t)((double)a / (double)b), rest = a - result * b;
    return result - (rest < 0) + (rest >= b);
}

/* Multiplies the weights with the factors of a context: Student's t around its prediction. */
static void weigh(models *in, uint32_t context, unsigned parity) {
    int64_t level = context / N_PREDICTIONS, place = (int64_t)(context % N_PREDICTIONS) - REACH;
    int64_t centre = (place * ex(4 * level + 2)) >> 1;
    int64_t scale = ex(max64(4 * (level + in->offset) + 2, 0)) + in->floor;
    int64_t freedom = (((int64_t)4 << in->tail) - 1) << 20;
    const symbol *symbols = in->symbols + in->start[parity];
    const int64_t *weights = in->weights + in->start[parity];
    uint32_t count = in->count[parity];
    for (uint32_t j = 0; j < count; j++) {
        int64_t far = symbols[j].value - centre;
        far = min64(quotient((far < 0 ? -far : far) << 10, scale), (int64_t)1 << 20);
        int64_t factor = quotient(freedom << 30, freedom + far * far);
        for (int32_t step = 0; step <= in->tail; step++) factor = (factor * factor) >> 30;
        in->scratch[j] = (weights[j] * factor) >> 26;
    }
    if (symbols[count - 1].id == in->outlier) in->scratch[count - 1] = weights[count - 1] << 4;
}

/* Turns the weights into frequencies that sum to 2^24, and these into a row. */
static void accumulate(models *in, uint32_t count, uint32_t *row) {
    int64_t *weights = in->scratch, total = 0, left = RANGE, free = (int64_t)RANGE - count;
    uint32_t top = 0, start = 0, first = 0;
    for (uint32_t j = 0; j < count; j++) {
        total += weights[j];
        if (weights[j] > weights[top]) top = j;
    }
    total = max64(total, 1);
    for (uint32_t j = 0; j < count; j++) {
        weights[j] = 1 + quotient(weights[j] * free, total);
        left -= weights[j];
    }
    weights[top] += left;
    uint32_t *cumulative = row + 1 + TOP_WORDS;
    for (uint32_t j = 0; j < count; j++) {
        cumulative[j] = start;
        start += (uint32_t)weights[j];
    }
    for (uint32_t j = 0; j < PADDING; j++) cumulative[count + j] = RANGE;
    unsigned char *tops = (unsigned char *)(row + 1);
    for (uint32_t part = 0; part < 1u << TOP_BITS; part++) {
        while (cumulative[first + 1] <= part << (PRECISION - TOP_BITS)) first++;
        tops[part] = (unsigned char)(first >> in->shift);
    }
}

int32_t models_add(models *in, uint32_t slot, uint32_t context, unsigned parity) {
    uint32_t count = in->count[parity];
    if (count == 0) return -1;
    if (in->used == in->n_rows) {
        memset(in->places, 0xFF, in->n_slots * sizeof(int32_t));
        in->used = 0;
    }
    size_t place = in->used++ * in->stride;
    in->places[slot] = (int32_t)place;
    if (in->by_rule) weigh(in, context, parity);
    else memcpy(in->scratch, in->weights + in->start[parity], count * sizeof(int64_t));
    in->rows[place] = in->start[parity];
    accumulate(in, count, in->rows + place);
    return (int32_t)place;
}
