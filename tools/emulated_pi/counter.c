/* A QEMU (user mode) plugin that counts the A64 instructions a program executes between marks.
 *
 * The guest marks by the system call getpriority(MARK, tag): `MARK` is no valid first argument, so the kernel refuses it
 * and nothing happens, but the plugin sees it and prints one line to standard error:
 *     counter TAG instructions=N memory=N dot_product=N integer_multiply=N float_multiply_add=N
 * with the totals so far of the whole process. Encodings: Arm ARM (DDI 0487), C4.1 "A64 instruction set encoding".
 * The declarations below are those of plugin interface version 1 (QEMU 4.2 to 8.2); later ones refuse to load it. */

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
#define SYS_GETPRIORITY 141
#define MARK 0xed6ec1f

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*callback)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int add_u64, void *counter, uint64_t by);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id id,
    void (*callback)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;

enum { INSTRUCTIONS, MEMORY, DOT_PRODUCT, INTEGER_MULTIPLY, FLOAT_MULTIPLY_ADD, KINDS };
static const char *const names[KINDS] = {"instructions", "memory", "dot_product", "integer_multiply", "float_multiply_add"};
static uint64_t totals[KINDS];

static int matches(uint32_t word, uint32_t mask, uint32_t value) { return (word & mask) == value; }

static int kind_of(uint32_t word)
{
    if (matches(word, 0x0a000000, 0x08000000))
        return MEMORY;                                    /* op0 = x1x0: loads and stores */
    if (matches(word, 0x9f20fc00, 0x0e009400) || matches(word, 0x9f00f400, 0x0f00e000))
        return DOT_PRODUCT;                               /* SDOT, UDOT: by vector, by element */
    if (matches(word, 0x9f20fc00, 0x0e208000) || matches(word, 0x9f20fc00, 0x0e20c000) ||
        matches(word, 0x9f00f400, 0x0f002000) || matches(word, 0x9f00f400, 0x0f00a000))
        return INTEGER_MULTIPLY;                          /* widening: S/UMLAL, S/UMULL*/
    if (matches(word, 0xbfa0fc00, 0x0e20cc00) || matches(word, 0xbf80f400, 0x0f801000))
        return FLOAT_MULTIPLY_ADD;                        /* FMLA: by vector, by element */
    return INSTRUCTIONS;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    uint64_t counts[KINDS] = {0};
    (void)id;
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(block); i < n; i++) {
        int kind = kind_of(*(const uint32_t *)qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)));
        counts[INSTRUCTIONS]++;
        if (kind != INSTRUCTIONS)
            counts[kind]++;
    }
    for (int kind = 0; kind < KINDS; kind++)
        if (counts[kind])
            qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &totals[kind], counts[kind]);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t first, uint64_t second, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != SYS_GETPRIORITY || first != MARK)
        return;
    fprintf(stderr, "counter %" PRIu64, second);
    for (int kind = 0; kind < KINDS; kind++)
        fprintf(stderr, " %s=%" PRIu64, names[kind], totals[kind]);
    fputc('\n', stderr);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *information, int count, char **arguments)
{
    (void)information, (void)count, (void)arguments;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
