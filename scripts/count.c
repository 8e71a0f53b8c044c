/*
 * A plugin for QEMU: prints how many guest instructions ran between the marks of kernel/src/platform/arch/marker.rs.
 *
 * Declared here is what it uses of qemu-plugin.h, which distributions seldom install, as of version 3 (QEMU 9.1).
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} qemu_plugin_u64;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0 };
enum { ADD = 0 };

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t size);
uint64_t qemu_plugin_u64_sum(qemu_plugin_u64 counter);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *to, size_t length);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int flags, void *);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *, int op, qemu_plugin_u64, uint64_t);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 3;

static const uint8_t START[] = {0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x34, 0x52};
static const uint8_t END[] = {0x0f, 0x1f, 0x84, 0x00, 0x02, 0x00, 0x34, 0x52};

static qemu_plugin_u64 executed;
static uint64_t at_start;

static void start(unsigned processor, void *data)
{
    at_start = qemu_plugin_u64_sum(executed);
}

static void end(unsigned processor, void *data)
{
    printf("%" PRIu64 "\n", qemu_plugin_u64_sum(executed) - at_start);
    fflush(stdout);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint8_t bytes[sizeof START] = {0};
        qemu_plugin_insn_data(instruction, bytes, sizeof bytes);
        if (!memcmp(bytes, START, sizeof bytes))
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, start, NO_REGISTERS, NULL);
        if (!memcmp(bytes, END, sizeof bytes))
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, end, NO_REGISTERS, NULL);
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, ADD, executed, 1);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    executed.score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
