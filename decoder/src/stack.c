/* Version 1: one stream for all tensors, and contexts of whole blocks of a tensor (docs/format.md, "version 1"). */

#include "ids.h"
#include "maths.h"

#define PHASES 16
#define BAND ((uint64_t)1 << 20)
#define LARGEST_SUM ((int64_t)1 << 50)
#define UNIT 192 /* 4096 in sixteenths of octaves */
#define MOST_KERNEL 576
#define CHUNK 256
#define ROW_PRIOR 8
#define KERNEL_PRIOR 16
#define MEAN_PRIOR 8

/* What is learnt of a tensor, and memory for a block. Sums are whole numbers below 2^53. */
typedef struct {
    size_t rows, columns, taps, width, band;
    bool predicts;
    unsigned number_bytes;
    rule rule;
    const symbol *symbols;
    unsigned char *numbers; /* (taps, rows, columns), numbers of symbols; few bytes stay in a processor's cache */
    int64_t mean, total, count;
    int64_t *row_sums, *row_counts, *column_sums, *column_counts;
    double *kernels;   /* (rows, columns), if there are several taps */
    int32_t *expected; /* (rows, columns), if neighbours predict */
    double ratios[MOST_KERNEL + 1], inverse_scales[N_LEVELS]; /* 2 / E */
    int32_t *column_levels; /* (columns) */
    uint16_t *row_contexts; /* (columns) */
    uint16_t *contexts;     /* of the block, in C order */
    uint32_t *places;       /* within the band, in coding order */
    int32_t *distances;     /* (band, columns) */
    int64_t *in_rows;       /* (band) */
    int64_t *in_columns;    /* (columns) */
    uint32_t begins[N_CONTEXTS + 1];
} walk;

/* The weights of some rows whose phase is within limits. */
typedef struct {
    size_t start, stop;
    size_t low, high;
} block;

static inline int32_t lg(double number) { return (int32_t)(bits_of_double(number) >> 48) - (1023 << 4); }

bool stack_start(span words, stack_state *state) {
    state->left = words.size / 4;
    state->state = 0;
    if (state->left > 0 && load32(words.data + 4 * (state->left - 1)) == 0) return false;
    while (state->state >> 32 == 0 && state->left > 0) {
        state->state = state->state << 32 | load32(words.data + 4 * --state->left);
    }
    return true;
}

/* Decodes the number of a symbol. */
static inline uint32_t pop(span words, stack_state *from, const uint32_t *row, unsigned shift) {
    uint32_t low = (uint32_t)from->state & (RANGE - 1);
    range found = find_symbol(row, low, shift);
    uint64_t state = (from->state >> PRECISION) * (found.stop - found.start) + (low - found.start);
    if (state >> 32 == 0 && from->left > 0) state = state << 32 | load32(words.data + 4 * --from->left);
    from->state = state;
    return found.number;
}

static inline void put_number(unsigned char *numbers, unsigned bytes, size_t place, uint32_t number) {
    uint16_t two = (uint16_t)number;
    if (bytes == 1) numbers[place] = (unsigned char)number;
    else if (bytes == 2) memcpy(numbers + 2 * place, &two, 2);
    else memcpy(numbers + 4 * place, &number, 4);
}

static inline uint32_t number_at(const walk *w, size_t place) {
    uint16_t two;
    uint32_t four;
    if (w->number_bytes == 1) return w->numbers[place];
    if (w->number_bytes == 2) {
        memcpy(&two, w->numbers + 2 * place, 2);
        return two;
    }
    memcpy(&four, w->numbers + 4 * place, 4);
    return four;
}

static gbnn_code make_walk(walk *w, const gbnn_tensor *tensor, const table *of, const models *with, arena *memory) {
    uint64_t taps, width;
    kernel_of(tensor, &taps, &width);
    w->rows = (size_t)tensor->shape[0];
    w->columns = (size_t)tensor->shape[1];
    w->taps = (size_t)taps;
    w->width = (size_t)width;
    if (w->columns > UINT32_MAX) return GBNN_ERROR_NO_MEMORY;
    uint64_t band = BAND / w->columns;
    w->band = band < 1 ? 1 : band > w->rows ? w->rows : (size_t)band;
    w->rule = of->rule;
    w->predicts = taps > 1 && (of->rule.left != 0 || of->rule.above != 0 || of->rule.corner != 0);
    w->symbols = with->symbols;
    w->number_bytes = of->n_live <= UINT8_MAX ? 1 : of->n_live <= UINT16_MAX ? 2 : 4;
    w->numbers = arena_take_room(memory, tensor->size, w->number_bytes);
    w->mean = ex(4 * of->rule.start);
    uint64_t in_tap = (uint64_t)w->rows * w->columns, in_band = (uint64_t)w->band * w->columns;
    w->row_sums = arena_take(memory, w->rows, sizeof(int64_t));
    w->row_counts = arena_take(memory, w->rows, sizeof(int64_t));
    w->column_sums = arena_take(memory, w->columns, sizeof(int64_t));
    w->column_counts = arena_take(memory, w->columns, sizeof(int64_t));
    w->kernels = arena_take(memory, taps > 1 ? in_tap : 1, sizeof(double));
    w->expected = arena_take(memory, w->predicts ? in_tap : 1, sizeof(int32_t));
    w->column_levels = arena_take(memory, w->columns, sizeof(int32_t));
    w->row_contexts = arena_take(memory, w->columns, sizeof(uint16_t));
    w->contexts = arena_take_room(memory, in_band, sizeof(uint16_t));
    w->places = arena_take_room(memory, in_band, sizeof(uint32_t));
    w->distances = arena_take_room(memory, in_band, sizeof(int32_t));
    w->in_rows = arena_take(memory, w->band, sizeof(int64_t));
    w->in_columns = arena_take(memory, w->columns, sizeof(int64_t));
    bool made = w->row_sums != NULL && w->row_counts != NULL && w->column_sums != NULL && w->column_counts != NULL &&
                w->numbers != NULL && w->kernels != NULL && w->expected != NULL && w->column_levels != NULL && w->row_contexts != NULL &&
                w->contexts != NULL && w->places != NULL && w->distances != NULL && w->in_rows != NULL && w->in_columns != NULL;
    if (!made) return GBNN_ERROR_NO_MEMORY;
    for (size_t o = 0; o < w->rows; o++) {
        w->row_sums[o] = ROW_PRIOR << 12;
        w->row_counts[o] = ROW_PRIOR;
    }
    for (size_t i = 0; i < w->columns; i++) {
        w->column_sums[i] = ROW_PRIOR << 12;
        w->column_counts[i] = ROW_PRIOR;
    }
    for (int32_t level = 0; level <= MOST_KERNEL; level++) w->ratios[level] = (double)(KERNEL_PRIOR * ex(level));
    for (int32_t level = 0; level < N_LEVELS; level++) w->inverse_scales[level] = 2.0 / (double)ex(4 * level + 2);
    return GBNN_OK;
}

static inline int32_t clipped(int32_t number, int32_t low, int32_t high) {
    return number < low ? low : number > high ? high : number;
}

static inline double whole(double number) { return (double)(int64_t)number; }

/* What the contexts of a row depend on. */
typedef struct {
    const double *ratios, *inverse_scales;
    const double *kernels;   /* of the row; NULL in the first tap */
    const int32_t *expected; /* of the row; NULL if nothing predicts */
    const int32_t *column_levels;
    int32_t row_level, mean_level;
    double inverse; /* of the number of weights that a kernel's sum stands for */
} row_view;

/* 1 / n and a little more. Times it, a whole number below 2^49 has the whole part of the exact quotient: where that is not
 * whole, it is farther below the next whole number than the little more. */
static inline double inverse_of(double n) { return 1.0 / n * (1.0 + 0x1p-50); }

/* Expected magnitude of a weight, in quarter octaves. */
static inline int32_t level_of(const row_view *r, size_t i) {
    int32_t level = r->row_level + r->column_levels[i];
    if (r->kernels != NULL) {
        double linear = (r->ratios[clipped(level + UNIT, 0, MOST_KERNEL)] + r->kernels[i]) * r->inverse;
        level = lg(whole(linear < 1 ? 1.0 : linear)) - UNIT;
    }
    return clipped((level + r->mean_level) >> 2, 0, N_LEVELS - 1);
}

/* The prediction in half scales, rounded down from a half more. Multiples of half scales are kept on their side by a little
 * more; no other quotient is as near to one. Above 0, cutting off is rounding down. */
static inline int32_t place_of(const row_view *r, int32_t level, size_t i) {
    double halves = r->expected[i] * r->inverse_scales[level] + (0.5 + 0x1p-33);
    halves = halves < 16.0 ? halves : 16.0;
    halves = halves > -16.0 ? halves : -16.0;
    return clipped((int32_t)(halves + 32.0) - 32, -REACH, REACH);
}

static inline uint16_t context_of(const row_view *r, size_t i) {
    int32_t level = level_of(r, i), place = r->expected != NULL ? place_of(r, level, i) : 0;
    return (uint16_t)(N_PREDICTIONS * level + REACH + place);
}

/* Runs a statement for each column i of a row o within a block. */
#define FOR_COLUMNS(b, o, columns, statement)                                                                         \
    for (size_t first_ = 0, phase_ = (o) % PHASES; first_ < (columns) + phase_; first_ += PHASES) {                    \
        size_t begin_ = first_ + (b)->low < phase_ ? 0 : first_ + (b)->low - phase_;                                   \
        size_t stop_ = first_ + (b)->high < phase_ ? 0 : first_ + (b)->high - phase_;                                  \
        if (stop_ > (columns)) stop_ = (columns);                                                                      \
        for (size_t i = begin_; i < stop_; i++) statement;                                                             \
    }

/* Whether a block has the last half of the weights of its rows, or more. Whole rows are then faster to go through. */
static bool is_wide(const block *b) { return b->high == PHASES && b->low <= PHASES / 2; }

/* Contexts of a row's weights in a block, to `to`; returns where they end. */
static inline uint16_t *row_contexts(const row_view *r, const block *b, size_t o, size_t columns, uint16_t *scratch,
                                     uint16_t *to) {
    const row_view view = *r;
    if (is_wide(b)) {
        for (size_t i = 0; i < columns; i++) scratch[i] = context_of(&view, i);
        FOR_COLUMNS(b, o, columns, *to++ = scratch[i])
    } else {
        FOR_COLUMNS(b, o, columns, *to++ = context_of(&view, i))
    }
    return to;
}

/* Contexts of a block in C order, and where each will begin in coding order; returns the number of weights. */
static size_t find_contexts(walk *w, const block *b, size_t tap) {
    const size_t columns = w->columns;
    uint16_t *stop = w->contexts;
    const double inverse = inverse_of((double)(KERNEL_PRIOR + tap));
    row_view r = {w->ratios, w->inverse_scales, NULL, NULL, w->column_levels, 0, lg((double)w->mean), inverse};
    for (size_t i = 0; i < columns && columns > 1; i++) {
        w->column_levels[i] = lg((double)w->column_sums[i]) - lg((double)(w->column_counts[i] << 12));
    }
    for (size_t o = b->start; o < b->stop; o++) {
        r.row_level = lg((double)w->row_sums[o]) - lg((double)(w->row_counts[o] << 12));
        if (tap > 0) r.kernels = w->kernels + o * columns;
        if (tap > 0 && w->predicts) r.expected = w->expected + o * columns;
        stop = row_contexts(&r, b, o, columns, w->row_contexts, stop);
    }
    const uint16_t *contexts = w->contexts;
    uint32_t *begins = w->begins;
    const size_t count = (size_t)(stop - contexts);
    memset(begins, 0, sizeof w->begins);
    for (size_t index = 0; index < count; index++) begins[contexts[index] + 1]++;
    for (size_t context = 0; context < N_CONTEXTS; context++) begins[context + 1] += begins[context];
    return count;
}

/* Sorts the weights of a block by context; afterwards begins[c] is where context c ends. */
static void sort_places(walk *w, const block *b) {
    const uint16_t *context = w->contexts;
    uint32_t *begins = w->begins, *places = w->places;
    const size_t columns = w->columns;
    for (size_t o = b->start; o < b->stop; o++) {
        uint32_t first = (uint32_t)((o - b->start) * columns);
        FOR_COLUMNS(b, o, columns, places[begins[*context++]++] = first + (uint32_t)i)
    }
}

/* Decodes the numbers of the symbols of a block in coding order; `start` is the place of its first row. */
static void decode_block(walk *w, size_t start, span words, stack_state *from, models *with) {
    size_t place = 0;
    stack_state state = *from;
    const uint32_t *places = w->places, *ends = w->begins;
    unsigned char *numbers = w->numbers + start * w->number_bytes;
    const unsigned number_bytes = w->number_bytes, shift = with->shift;
    for (uint32_t context = 0; context < N_CONTEXTS; context++) {
        if (place == ends[context]) continue;
        int32_t model = with->places[context];
        if (model < 0) model = models_add(with, context, context, 0);
        const uint32_t *row = with->rows + model;
        for (size_t stop = ends[context]; place < stop; place++) {
            put_number(numbers, number_bytes, places[place], pop(words, &state, row, shift));
        }
    }
    *from = state;
}

static inline int64_t relative(int64_t sum, int64_t mean) { return min64(sum, LARGEST_SUM) * 4096 / mean; }

static inline int32_t distance_at(const walk *w, size_t plane, size_t at) {
    int32_t far = w->symbols[number_at(w, plane + at)].value - (w->predicts ? w->expected[at] : 0);
    return far < 0 ? -far : far;
}

/* How far the values of a row are from what was expected; returns their sum. */
static int64_t find_distances(walk *w, const block *b, size_t o, size_t plane, int32_t *distances) {
    const block before = {b->start, b->stop, 0, b->low};
    const size_t columns = w->columns, first = o * columns;
    int64_t sum = 0, *in_columns = w->in_columns;
    if (is_wide(b)) { /* the other weights of the row were read before */
        for (size_t i = 0; i < columns; i++) distances[i] = distance_at(w, plane, first + i);
        FOR_COLUMNS(&before, o, columns, distances[i] = 0)
        for (size_t i = 0; i < columns; i++) sum += distances[i];
        for (size_t i = 0; i < columns; i++) in_columns[i] += distances[i];
        return sum;
    }
    FOR_COLUMNS(b, o, columns, {
        distances[i] = distance_at(w, plane, first + i);
        sum += distances[i];
        in_columns[i] += distances[i];
    })
    return sum;
}

/* Counts the weights of a block in its rows and in all columns. Every 16 rows or columns have the same numbers. */
static void count_weights(walk *w, const block *b) {
    int64_t in_sixteen = (int64_t)(b->high - b->low);
    size_t whole_rows = (b->stop - b->start) / PHASES, rest = b->start + whole_rows * PHASES;
    size_t whole_columns = w->columns / PHASES, last = w->columns % PHASES;
    for (size_t i = 0; i < w->columns; i++) w->column_counts[i] += (int64_t)whole_rows * in_sixteen;
    for (size_t o = rest; o < b->stop; o++) FOR_COLUMNS(b, o, w->columns, w->column_counts[i]++)
    for (size_t o = b->start; o < b->stop; o++) {
        w->row_counts[o] += (int64_t)whole_columns * in_sixteen;
        FOR_COLUMNS(b, o, last, w->row_counts[o]++)
    }
}

/* Learns from a block; `plane` is the place of the first weight of its tap. */
static void learn(walk *w, const block *b, size_t count, size_t plane) {
    int64_t total = 0;
    memset(w->in_columns, 0, w->columns * sizeof(int64_t));
    for (size_t o = b->start; o < b->stop; o++) {
        int32_t *distances = w->distances + (o - b->start) * w->columns;
        w->in_rows[o - b->start] = find_distances(w, b, o, plane, distances);
        total += w->in_rows[o - b->start];
    }
    w->total += total;
    w->count += (int64_t)count;
    w->mean = max64(1, w->total / w->count);
    const double inverse = inverse_of((double)w->mean);
    for (size_t o = b->start; o < b->stop; o++) {
        const int32_t *distances = w->distances + (o - b->start) * w->columns;
        double *kernels = w->kernels + (w->taps > 1 ? o * w->columns : 0);
        w->row_sums[o] += relative(w->in_rows[o - b->start], w->mean);
        if (w->taps == 1) continue;
        if (is_wide(b)) {
            for (size_t i = 0; i < w->columns; i++) kernels[i] += whole(distances[i] * 4096.0 * inverse);
        } else {
            FOR_COLUMNS(b, o, w->columns, kernels[i] += whole(distances[i] * 4096.0 * inverse))
        }
    }
    for (size_t i = 0; i < w->columns; i++) w->column_sums[i] += relative(w->in_columns[i], w->mean);
    count_weights(w, b);
}

/* Predictions of a tap from the taps beside, above, and above to the left. */
static void expect(walk *w, size_t tap) {
    size_t x = tap % w->width, y = tap / w->width, n = w->rows * w->columns;
    int32_t left = x > 0 ? w->rule.left : 0, above = y > 0 ? w->rule.above : 0;
    int32_t corner = x > 0 && y > 0 ? w->rule.corner : 0;
    size_t beside = n * (tap - 1), over = y > 0 ? n * (tap - w->width) : 0;
    size_t across = x > 0 && y > 0 ? n * (tap - w->width - 1) : 0;
    for (size_t at = 0; at < n; at++) {
        int32_t sum = left * w->symbols[number_at(w, beside + at)].value;
        sum += above * w->symbols[number_at(w, over + at)].value;
        sum += corner * w->symbols[number_at(w, across + at)].value;
        w->expected[at] = sum >> 4;
    }
}

/* Writes all ids in C order, a few rows and columns of all taps at a time. */
static inline void put_ids(const walk *w, id_array ids, unsigned width) {
    const size_t n = w->rows * w->columns, taps = w->taps;
    for (size_t start = 0; start < n; start += CHUNK) {
        const size_t stop = start + CHUNK < n ? start + CHUNK : n;
        for (size_t tap = 0; tap < taps; tap++) {
            for (size_t at = start; at < stop; at++) {
                put_id(ids, width, at * taps + tap, w->symbols[number_at(w, tap * n + at)].id);
            }
        }
    }
}

static void decode_by_context(walk *w, span words, stack_state *state, models *with) {
    static const size_t first_ends[] = {1, 2, 4, 8, 16}, next_ends[] = {2, 16};
    for (size_t tap = 0; tap < w->taps; tap++) {
        size_t plane = tap * w->rows * w->columns;
        if (tap > 0 && w->predicts) expect(w, tap);
        w->total = MEAN_PRIOR * w->mean;
        w->count = MEAN_PRIOR;
        block b = {0, 0, 0, 0};
        for (size_t part = 0; part < (tap > 0 ? 2u : 5u); part++, b.low = b.high) {
            b.high = tap > 0 ? next_ends[part] : first_ends[part];
            for (b.start = 0; b.start < w->rows; b.start = b.stop) {
                b.stop = b.start + w->band < w->rows ? b.start + w->band : w->rows;
                size_t count = find_contexts(w, &b, tap);
                if (count == 0) continue;
                sort_places(w, &b);
                decode_block(w, plane + b.start * w->columns, words, state, with);
                learn(w, &b, count, plane);
            }
        }
    }
}

gbnn_code stack_decode(span words, stack_state *state, const gbnn_tensor *tensor, const table *of, models *with,
                       arena *memory, id_array ids) {
    if (!of->has_rule) {
        if (models_add(with, 0, 0, 0) < 0) return GBNN_ERROR_STREAM;
        for (size_t place = 0; place < (size_t)tensor->size; place++) {
            put_id(ids, ids.width, place, with->symbols[pop(words, state, with->rows, with->shift)].id);
        }
        return GBNN_OK;
    }
    walk *w = arena_take(memory, 1, sizeof(walk));
    if (w == NULL) return GBNN_ERROR_NO_MEMORY;
    TRY(make_walk(w, tensor, of, with, memory));
    decode_by_context(w, words, state, with);
    FOR_WIDTH(ids.width, put_ids(w, ids, WIDTH));
    return GBNN_OK;
}
