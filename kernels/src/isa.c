// Which instruction set is used: the best that was compiled and runs here, or the one asked for.
#include "ek.h"
#include "export.h"
#include <stdatomic.h>
#include <stdlib.h>

extern const ek_isa ek_avx512vnni_isa, ek_avxvnni_isa, ek_avx2_isa, ek_neon_i8mm_isa, ek_neon_dotprod_isa, ek_portable_isa;
static const ek_isa *const ISAS[] = {  // the best first
#ifdef EK_HAVE_AVX512VNNI
    &ek_avx512vnni_isa,
#endif
#ifdef EK_HAVE_AVXVNNI
    &ek_avxvnni_isa,
#endif
#ifdef EK_HAVE_AVX2
    &ek_avx2_isa,
#endif
#ifdef EK_HAVE_NEON_I8MM
    &ek_neon_i8mm_isa,
#endif
#ifdef EK_HAVE_NEON_DOTPROD
    &ek_neon_dotprod_isa,
#endif
    &ek_portable_isa,
};
enum { COUNT = sizeof ISAS / sizeof *ISAS };
static _Atomic(const ek_isa *) active;

static const ek_isa *find(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if ((!name || !strcmp(name, ISAS[i]->name)) && ISAS[i]->supported()) return ISAS[i];
    return NULL;
}

const ek_isa *ek_active(void) {
    const ek_isa *isa = atomic_load(&active);
    if (!isa) atomic_store(&active, isa = find(NULL));
    return isa;
}

EK_API int ek_set_isa(const char *name) {
    const ek_isa *isa = find(name);
    if (isa) atomic_store(&active, isa);
    return isa != NULL;
}

EK_API const char *ek_isa_name(void) { return ek_active()->name; }

EK_API const char *ek_isa_at(int wanted) {
    for (int i = 0; i < COUNT; i++)
        if (ISAS[i]->supported() && wanted-- == 0) return ISAS[i]->name;
    return NULL;
}

// y[n, rows] = x[n, columns] · Wᵀ on this thread, for tests and measurements. 0: ok, 1: unknown format, 2: out of memory.
EK_API int ek_multiply(int type, int rows, int columns, const uint8_t *packed, int n, const float *x, float *y) {
    if (!ek_packed_bytes(type, rows, columns)) return 1;
    const ek_isa *isa = ek_active();
    const ek_format *f = ek_format_of(type);
    const int act = f->act, blocks = ek_act_blocks(f, columns);
    const ek_matrix m = {f, rows, columns, packed, blocks};
    uint8_t *scratch = malloc(4 * (size_t)n * (size_t)blocks * (size_t)ek_act_words(act) + 1);
    if (!scratch) return 2;
    isa->quantize(act, blocks, columns, x, (size_t)columns, n, 0, n, scratch);
    isa->product(&m, 0, (rows + EK_ROWS - 1) / EK_ROWS, scratch, n, y, (size_t)rows);
    free(scratch);
    return 0;
}

EK_API int ek_rows(int type, int rows, int columns, const uint8_t *packed, int count, const int *ids, float *y) {
    if (!ek_packed_bytes(type, rows, columns)) return 1;
    const ek_matrix m = {ek_format_of(type), rows, columns, packed, 0};
    for (int i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= rows) return 1;
        ek_get_row(&m, ids[i], y + (size_t)i * (size_t)columns);
    }
    return 0;
}
