// What this processor and its operating system can do.
#ifndef EK_CPU_H
#define EK_CPU_H
#include <stdint.h>
#if defined(__x86_64__)
#include <cpuid.h>
static inline uint32_t ek_cpuid(uint32_t leaf, uint32_t sub, int reg) {
    uint32_t r[4] = {0};
    if (__get_cpuid_max(0, 0) < leaf) return 0;
    __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
    return r[reg];
}
enum { EAX, EBX, ECX, EDX };
// Registers that the operating system saves: 0x6 with AVX, 0xe6 with AVX-512.
static inline int ek_saved(uint32_t bits) {
    uint32_t low, high;
    if (!(ek_cpuid(1, 0, ECX) >> 27 & 1)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & bits) == bits;
}
static inline int ek_has_avx2(void) {  // with FMA and F16C
    const uint32_t one = ek_cpuid(1, 0, ECX);
    return ek_saved(0x6) && one >> 12 & 1 && one >> 29 & 1 && ek_cpuid(7, 0, EBX) >> 5 & 1;
}
static inline int ek_has_avxvnni(void) { return ek_has_avx2() && ek_cpuid(7, 1, EAX) >> 4 & 1; }
static inline int ek_has_avx512vnni(void) {  // with F, DQ, BW and VL
    const uint32_t b = ek_cpuid(7, 0, EBX);
    return ek_has_avx2() && ek_saved(0xe6) && b >> 16 & 1 && b >> 17 & 1 && b >> 30 & 1 && b >> 31 && ek_cpuid(7, 0, ECX) >> 11 & 1;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static inline int ek_has_dotprod(void) { return getauxval(16) >> 20 & 1; }  // AT_HWCAP, HWCAP_ASIMDDP
static inline int ek_has_i8mm(void) { return getauxval(26) >> 13 & 1; }     // AT_HWCAP2, HWCAP2_I8MM
#elif defined(__APPLE__)
#include <stddef.h>
int sysctlbyname(const char *, void *, size_t *, void *, size_t);  // sys/sysctl.h
static inline int ek_sysctl(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(name, &value, &size, NULL, 0) && value;
}
static inline int ek_has_dotprod(void) { return ek_sysctl("hw.optional.arm.FEAT_DotProd"); }
static inline int ek_has_i8mm(void) { return ek_sysctl("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
__declspec(dllimport) int __stdcall IsProcessorFeaturePresent(unsigned long);  // processthreadsapi.h
static inline int ek_has_dotprod(void) { return IsProcessorFeaturePresent(43); }
static inline int ek_has_i8mm(void) { return IsProcessorFeaturePresent(66); }
#else
static inline int ek_has_dotprod(void) { return 0; }
static inline int ek_has_i8mm(void) { return 0; }
#endif
#endif
#endif
