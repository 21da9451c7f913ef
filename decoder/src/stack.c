/* Version 1: one stream for all tensors, and contexts of whole blocks of a tensor (docs/format.md, "version 1"). */

#include "ids.h"
#include "maths.h"

#define PHASES 16
#define BAND ((uint64_t)1 << 20)
#define LARGEST_SUM ((int64_t)1 << 50)
#define UNIT 192 /* 4096 in sixteenths of octaves */
#define MOST_KERNEL 576
#define ROW_PRIOR 8
#define KERNEL_PRIOR 16
#define MEAN_PRIOR 8

/* What is learnt of a tensor, and memory for a block. Sums are whole numbers below 2^53. */
typedef struct {
    size_t rows, columns, taps, width, band;
    bool predicts;
    rule rule;
    const int32_t *values;
    uint32_t n_components;
    int64_t mean, total, count;
    int64_t *row_sums, *row_counts, *column_sums, *column_counts;
    double *kernels;   /* (rows, columns), if there are several taps */
    int32_t *expected; /* (rows, columns), if neighbours predict */
    double ratios[MOST_KERNEL + 1], scales[N_LEVELS];
    int32_t *column_levels; /* (columns) */
    uint16_t *row_contexts; /* (columns) */
    uint16_t *contexts;     /* of the block, in C order */
    uint32_t *places;       /* within the band, in coding order */
    int32_t *distances;     /* (band, columns) */
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

static inline uint32_t pop(span words, stack_state *from, const uint32_t *row, const uint16_t *tops) {
    uint64_t state = from->state;
    uint32_t low = (uint32_t)state & (RANGE - 1);
    const uint32_t *found = find_symbol(row, tops, low);
    state = (state >> PRECISION) * (found[1] - found[0]) + (low - found[0]);
    if (state >> 32 == 0 && from->left > 0) state = state << 32 | load32(words.data + 4 * --from->left);
    from->state = state;
    return (uint32_t)(found - row);
}

static gbnn_code make_walk(walk *w, const gbnn_tensor *tensor, const table *of, const bank *components, arena *memory) {
    uint64_t taps, width;
    kernel_of(tensor, &taps, &width);
    w->rows = (size_t)tensor->shape[0];
    w->columns = (size_t)tensor->shape[1];
    w->taps = (size_t)taps;
    w->width = (size_t)width;
    if (w->columns > UINT32_MAX) return GBNN_NO_MEMORY;
    uint64_t band = BAND / w->columns;
    w->band = band < 1 ? 1 : band > w->rows ? w->rows : (size_t)band;
    w->rule = of->rule;
    w->predicts = taps > 1 && (of->rule.left != 0 || of->rule.above != 0 || of->rule.corner != 0);
    w->values = components->values;
    w->n_components = components->size;
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
    w->contexts = arena_take(memory, in_band, sizeof(uint16_t));
    w->places = arena_take(memory, in_band, sizeof(uint32_t));
    w->distances = arena_take(memory, in_band, sizeof(int32_t));
    w->in_columns = arena_take(memory, w->columns, sizeof(int64_t));
    bool made = w->row_sums != NULL && w->row_counts != NULL && w->column_sums != NULL && w->column_counts != NULL &&
                w->kernels != NULL && w->expected != NULL && w->column_levels != NULL && w->row_contexts != NULL &&
                w->contexts != NULL && w->places != NULL && w->distances != NULL && w->in_columns != NULL;
    if (!made) return GBNN_NO_MEMORY;
    for (size_t o = 0; o < w->rows; o++) {
        w->row_sums[o] = ROW_PRIOR << 12;
        w->row_counts[o] = ROW_PRIOR;
    }
    for (size_t i = 0; i < w->columns; i++) {
        w->column_sums[i] = ROW_PRIOR << 12;
        w->column_counts[i] = ROW_PRIOR;
    }
    for (int32_t level = 0; level <= MOST_KERNEL; level++) w->ratios[level] = (double)(KERNEL_PRIOR * ex(level));
    for (int32_t level = 0; level < N_LEVELS; level++) w->scales[level] = (double)ex(4 * level + 2);
    return GBNN_OK;
}

static inline int32_t clipped(int32_t number, int32_t low, int32_t high) {
    return number < low ? low : number > high ? high : number;
}

/* Expected magnitude of a weight, in quarter octaves. */
static inline int32_t level_of(const walk *w, size_t tap, int32_t level, int32_t mean_level, double kernel) {
    if (tap > 0) {
        double linear = (w->ratios[clipped(level + UNIT, 0, MOST_KERNEL)] + kernel) / (double)(KERNEL_PRIOR + tap);
        level = lg(linear < 1 ? 1.0 : (double)(int64_t)linear) - UNIT;
    }
    return clipped((level + mean_level) >> 2, 0, N_LEVELS - 1);
}

/* The prediction in half scales, rounded down from a half more. */
static inline int32_t place_of(const walk *w, int32_t level, int32_t expected) {
    double scale = w->scales[level];
    double halves = clamped((4.0 * expected + scale) / (2.0 * scale), 16.0) + 32.0; /* above 0: cut off is down */
    return clipped((int32_t)halves - 32, -REACH, REACH);
}

static inline uint16_t context_of(const walk *w, size_t tap, int32_t level, int32_t mean_level, size_t at) {
    int32_t found = level_of(w, tap, level, mean_level, tap > 0 ? w->kernels[at] : 0.0);
    int32_t place = tap > 0 && w->predicts ? place_of(w, found, w->expected[at]) : 0;
    return (uint16_t)(N_PREDICTIONS * found + REACH + place);
}

/* Runs a statement for each column i of a row o within a block. */
#define FOR_COLUMNS(b, o, columns, statement)                                                                         \
    for (size_t first_ = 0, phase_ = (o) % PHASES; first_ < (columns) + phase_; first_ += PHASES) {                    \
        size_t begin_ = first_ + (b)->low < phase_ ? 0 : first_ + (b)->low - phase_;                                   \
        size_t stop_ = first_ + (b)->high < phase_ ? 0 : first_ + (b)->high - phase_;                                  \
        if (stop_ > (columns)) stop_ = (columns);                                                                      \
        for (size_t i = begin_; i < stop_; i++) statement;                                                             \
    }

/* Contexts of a block in C order, and how often each occurs; returns the number of weights. */
static size_t find_contexts(walk *w, const block *b, size_t tap) {
    int32_t mean_level = lg((double)w->mean);
    size_t count = 0;
    memset(w->begins, 0, sizeof w->begins);
    for (size_t i = 0; i < w->columns && w->columns > 1; i++) {
        w->column_levels[i] = lg((double)w->column_sums[i]) - lg((double)(w->column_counts[i] << 12));
    }
    for (size_t o = b->start; o < b->stop; o++) {
        int32_t row_level = lg((double)w->row_sums[o]) - lg((double)(w->row_counts[o] << 12));
        size_t row = o * w->columns;
        if (b->high - b->low >= PHASES / 2) {
            for (size_t i = 0; i < w->columns; i++) {
                w->row_contexts[i] = context_of(w, tap, row_level + w->column_levels[i], mean_level, row + i);
            }
            FOR_COLUMNS(b, o, w->columns, w->contexts[count++] = w->row_contexts[i])
        } else {
            FOR_COLUMNS(b, o, w->columns, {
                w->contexts[count++] = context_of(w, tap, row_level + w->column_levels[i], mean_level, row + i);
            })
        }
    }
    for (size_t index = 0; index < count; index++) w->begins[w->contexts[index] + 1]++;
    for (size_t context = 0; context < N_CONTEXTS; context++) w->begins[context + 1] += w->begins[context];
    return count;
}

/* Sorts the weights of a block by context; afterwards begins[c] is where context c ends. */
static void sort_places(walk *w, const block *b) {
    size_t count = 0;
    for (size_t o = b->start; o < b->stop; o++) {
        size_t row = (o - b->start) * w->columns;
        FOR_COLUMNS(b, o, w->columns, w->places[w->begins[w->contexts[count++]]++] = (uint32_t)(row + i))
    }
}

/* Decodes a block in coding order, and notes how far each value is from what was expected. */
static inline void decode_block(walk *w, const block *b, size_t tap, span words, stack_state *from, models *with,
                                unsigned char *ids, unsigned width) {
    size_t row = b->start * w->columns, place = 0;
    stack_state state = *from;
    const uint32_t *symbols = with->symbols[0];
    const int32_t *values = with->values[0];
    for (uint32_t context = 0; context < N_CONTEXTS; context++) {
        if (place == w->begins[context]) continue;
        int32_t model = with->rows[context];
        if (model < 0) model = models_add(with, context, context, 0);
        const uint32_t *cumulative = with->cumulative + (size_t)model * with->stride;
        const uint16_t *tops = with->tops + ((size_t)model << TOP_BITS);
        for (; place < w->begins[context]; place++) {
            uint32_t j = pop(words, &state, cumulative, tops);
            size_t at = w->places[place];
            int32_t far = values[j] - (w->predicts ? w->expected[row + at] : 0);
            w->distances[at] = far < 0 ? -far : far;
            put_id(ids, width, (row + at) * w->taps + tap, symbols[j]);
        }
    }
    *from = state;
}

static inline int64_t relative(int64_t sum, int64_t mean) { return min64(sum, LARGEST_SUM) * 4096 / mean; }

static void learn(walk *w, const block *b, size_t count) {
    memset(w->in_columns, 0, w->columns * sizeof(int64_t));
    int64_t total = 0;
    for (size_t o = b->start; o < b->stop; o++) {
        const int32_t *distances = w->distances + (o - b->start) * w->columns;
        FOR_COLUMNS(b, o, w->columns, {
            total += distances[i];
            w->in_columns[i] += distances[i];
            w->column_counts[i]++;
        })
    }
    w->total += total;
    w->count += (int64_t)count;
    w->mean = max64(1, w->total / w->count);
    double mean = (double)w->mean;
    for (size_t o = b->start; o < b->stop; o++) {
        const int32_t *distances = w->distances + (o - b->start) * w->columns;
        double *kernels = w->kernels + o * w->columns;
        int64_t in_row = 0, in_row_count = 0;
        FOR_COLUMNS(b, o, w->columns, {
            in_row += distances[i];
            in_row_count++;
        })
        w->row_sums[o] += relative(in_row, w->mean);
        w->row_counts[o] += in_row_count;
        if (w->taps == 1) continue;
        FOR_COLUMNS(b, o, w->columns, kernels[i] += (double)(int64_t)(distances[i] * 4096.0 / mean))
    }
    for (size_t i = 0; i < w->columns; i++) w->column_sums[i] += relative(w->in_columns[i], w->mean);
}

/* Predictions of a tap from the taps beside, above, and above to the left. */
static inline void expect(walk *w, size_t tap, const unsigned char *ids, unsigned width) {
    size_t x = tap % w->width, y = tap / w->width, n = w->rows * w->columns;
    int32_t left = x > 0 ? w->rule.left : 0, above = y > 0 ? w->rule.above : 0;
    int32_t corner = x > 0 && y > 0 ? w->rule.corner : 0;
    size_t beside = tap - 1, over = y > 0 ? tap - w->width : 0, across = x > 0 && y > 0 ? tap - w->width - 1 : 0;
    for (size_t at = 0; at < n; at++) {
        const size_t first = at * w->taps;
        int32_t sum = left * w->values[get_id(ids, width, first + beside)];
        sum += above * w->values[get_id(ids, width, first + over)];
        sum += corner * w->values[get_id(ids, width, first + across)];
        w->expected[at] = sum >> 4;
    }
}

static void decode_by_context(walk *w, span words, stack_state *state, models *with, id_array ids) {
    static const size_t first_ends[] = {1, 2, 4, 8, 16}, next_ends[] = {2, 16};
    for (size_t tap = 0; tap < w->taps; tap++) {
        if (tap > 0 && w->predicts) FOR_WIDTH(ids.width, expect(w, tap, ids.bytes, WIDTH));
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
                FOR_WIDTH(ids.width, decode_block(w, &b, tap, words, state, with, ids.bytes, WIDTH));
                learn(w, &b, count);
            }
        }
    }
}

gbnn_code stack_decode(span words, stack_state *state, const gbnn_tensor *tensor, const table *of,
                       const bank *components, models *with, arena *memory, id_array ids) {
    if (!of->has_rule) {
        if (models_add(with, 0, 0, 0) < 0) return GBNN_STREAM;
        for (size_t place = 0; place < (size_t)tensor->size; place++) {
            uint32_t j = pop(words, state, with->cumulative, with->tops);
            put_id(ids.bytes, ids.width, place, with->symbols[0][j]);
        }
        return GBNN_OK;
    }
    walk *w = arena_take(memory, 1, sizeof(walk));
    if (w == NULL) return GBNN_NO_MEMORY;
    TRY(make_walk(w, tensor, of, components, memory));
    decode_by_context(w, words, state, with, ids);
    return GBNN_OK;
}
