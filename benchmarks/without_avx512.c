/* Makes a process believe that its CPU has AVX2 and FMA, but no AVX512, VNNI, bf16 or AMX: how most desktops and older
 * servers are measured on a newer Xeon.
 *
 *     cc -O2 -shared -fPIC -o without_avx512.so benchmarks/without_avx512.c
 *     LD_PRELOAD=$PWD/without_avx512.so python benchmarks/int8_weights.py
 *
 * Linux on x86-64, on a CPU and a kernel that can let CPUID fault ("cpuid_fault" in /proc/cpuinfo). The kernel raises
 * SIGSEGV at each CPUID; the handler runs it, hides the bits and goes on. Threads inherit that, programs that are
 * started inherit LD_PRELOAD. numpy, ONNX Runtime, torch and oneDNN then choose their AVX2 kernels. It does
 * not reach code that was compiled for AVX512 and asks nobody (llama.cpp as it builds by default), the C library, which
 * has chosen its memcpy by then, nor the CPU's clock, caches and memory. Whoever takes SIGSEGV for himself, such as
 * Python's faulthandler, ends it. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012 /* <asm/prctl.h> */

static struct sigaction before;

static long let_run(long on) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static void cpuid(uint32_t r[4]) { /* eax, ebx, ecx, edx; asked for are the leaf in eax and the subleaf in ecx */
  let_run(1);
  __asm__ volatile("cpuid" : "+a"(r[0]), "=b"(r[1]), "+c"(r[2]), "=d"(r[3]));
  let_run(0);
}

#define BIT(n) (1u << (n))

static void hide(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
  if (leaf == 7 && subleaf == 0) {
    r[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    /* AVX512: F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ; 4VNNIW 4FMAPS VP2INTERSECT FP16 */
    r[2] &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
    r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(23));
    r[3] &= ~(BIT(22) | BIT(24) | BIT(25)); /* AMX: BF16 TILE INT8 */
  } else if (leaf == 7 && subleaf == 1) {
    r[0] &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI AVX512-BF16 AMX-FP16 AVX-IFMA */
    r[3] = 0; /* AVX-VNNI-INT8 and what came after */
  } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) { /* AMX's tiles, AVX10 */
    r[0] = r[1] = r[2] = r[3] = 0;
  }
}

static void on_fault(int signal, siginfo_t *info, void *context) {
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *at = (const uint8_t *)g[REG_RIP];
  (void)signal;
  if (info->si_code == SI_KERNEL && at[0] == 0x0f && at[1] == 0xa2) {
    uint32_t r[4] = {(uint32_t)g[REG_RAX], 0, (uint32_t)g[REG_RCX], 0}, leaf = r[0], subleaf = r[2];
    cpuid(r);
    hide(leaf, subleaf, r);
    g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
    g[REG_RIP] += 2;
  } else {
    sigaction(SIGSEGV, &before, NULL); /* a real fault: it happens again, to whom it belongs */
  }
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction own = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (sigaction(SIGSEGV, &own, &before) || let_run(0)) {
    fputs("without_avx512: this CPU or kernel cannot let CPUID fault\n", stderr);
    _exit(1); /* a figure under the wrong name would be worse than none */
  }
}
