/*
 * A plugin for QEMU: counts what a guest does between the marks of kernel/src/platform/arch/marker.rs, which any guest can
 * execute, and prints a line for each pair of them:
 *
 *   ns            the host's time between them
 *   date          the host's time at the second, since 1970, in nanoseconds
 *   instructions  of the guest
 *   kicks         writes to a virtio device's notification registers
 *   interrupts    and exceptions, counted when the guest returns from them (`iretq`)
 *   mmio          accesses to any device's memory, kicks and the local APIC among them
 *   ports         port instructions
 *   halts         `hlt`
 *   total_...     the same since the machine was reset, up to the second mark, but for kicks and mmio. Memory is looked at between
 *                 marks only: QEMU 10.0 aborts now and then when a plugin asks where an access went while firmware moves devices.
 *
 * Arguments: `mmio=off` does not look at memory, which makes the guest faster: kicks and mmio are 0 then. `count=off` counts
 * nothing, so that the guest is about as fast as without the plugin. `out=FILE` prints to a file.
 *
 * Declared here is what it uses of qemu-plugin.h, which distributions seldom install, as of version 3 (QEMU 9.1).
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} qemu_plugin_u64;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
enum { NO_REGISTERS = 0 };
enum { ADD = 0 };
enum { READS_AND_WRITES = 3 };

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t size);
uint64_t qemu_plugin_u64_sum(qemu_plugin_u64 counter);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *to, size_t length);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int flags, void *);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *, int op, qemu_plugin_u64, uint64_t);
void qemu_plugin_register_vcpu_mem_cb(
    struct qemu_plugin_insn *, void (*)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *), int flags, int kind, void *);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t, uint64_t address);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);
const char *qemu_plugin_hwaddr_device_name(const struct qemu_plugin_hwaddr *);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 3;

enum { MAX_INSTRUCTION_LEN = 15 };
static const uint8_t START[] = {0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x34, 0x52};
static const uint8_t END[] = {0x0f, 0x1f, 0x84, 0x00, 0x02, 0x00, 0x34, 0x52};
/* What QEMU calls the notification registers: of PCI devices, and all registers of others. */
static const char *const DOORBELLS[] = {"virtio-pci-notify", "virtio-mmio"};

/* What is counted. */
enum { INSTRUCTIONS, KICKS, INTERRUPTS, MMIO, PORTS, HALTS, COUNTERS };
static const char *const NAMES[] = {"instructions", "kicks", "interrupts", "mmio", "ports", "halts"};
static qemu_plugin_u64 counters[COUNTERS];
static uint64_t at_start[COUNTERS];
static uint64_t started;
static bool counts = true, watches_memory = true, between;
static FILE *out;
/* Memory accesses have a callback each, and add here. */
static uint64_t kicks, mmio;

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

static uint64_t count(int what)
{
    switch (what) {
    case KICKS: return kicks;
    case MMIO: return mmio;
    default: return qemu_plugin_u64_sum(counters[what]);
    }
}

static void start(unsigned processor, void *data)
{
    for (int i = 0; i < COUNTERS; i++)
        at_start[i] = count(i);
    between = true;
    started = now(CLOCK_MONOTONIC);
}

static void end(unsigned processor, void *data)
{
    uint64_t took = now(CLOCK_MONOTONIC) - started;
    between = false;
    fprintf(out, "ns=%" PRIu64 " date=%" PRIu64, took, now(CLOCK_REALTIME));
    for (int i = 0; i < COUNTERS; i++)
        fprintf(out, " %s=%" PRIu64, NAMES[i], count(i) - at_start[i]);
    for (int i = 0; i < COUNTERS; i++)
        fprintf(out, " total_%s=%" PRIu64, NAMES[i], count(i));
    fprintf(out, "\n");
    fflush(out);
}

static void accessed(unsigned processor, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    if (!between)
        return;
    struct qemu_plugin_hwaddr *place = qemu_plugin_get_hwaddr(info, address);
    if (!place || !qemu_plugin_hwaddr_is_io(place))
        return;
    mmio++;
    if (!qemu_plugin_mem_is_store(info))
        return;
    const char *device = qemu_plugin_hwaddr_device_name(place);
    for (size_t i = 0; i < sizeof DOORBELLS / sizeof *DOORBELLS; i++)
        kicks += !strncmp(device, DOORBELLS[i], strlen(DOORBELLS[i]));
}

/* Which counter an instruction adds to besides INSTRUCTIONS; -1: none. */
static int counter_of(const uint8_t *bytes, size_t length)
{
    size_t i = 0;
    /* Prefixes: operand size, repetition, REX. */
    while (i + 1 < length && (bytes[i] == 0x66 || bytes[i] == 0xf2 || bytes[i] == 0xf3 || (bytes[i] & 0xf0) == 0x40))
        i++;
    switch (bytes[i]) {
    case 0xcf: return INTERRUPTS;
    case 0xf4: return HALTS;
    case 0x6c: case 0x6d: case 0x6e: case 0x6f:
    case 0xe4: case 0xe5: case 0xe6: case 0xe7:
    case 0xec: case 0xed: case 0xee: case 0xef: return PORTS;
    default: return -1;
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint8_t bytes[MAX_INSTRUCTION_LEN] = {0};
        size_t length = qemu_plugin_insn_data(instruction, bytes, sizeof bytes);
        if (!memcmp(bytes, START, sizeof START))
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, start, NO_REGISTERS, NULL);
        if (!memcmp(bytes, END, sizeof END))
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, end, NO_REGISTERS, NULL);
        if (!counts)
            continue;
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, ADD, counters[INSTRUCTIONS], 1);
        int counter = counter_of(bytes, length);
        if (counter >= 0)
            qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, ADD, counters[counter], 1);
        if (watches_memory)
            qemu_plugin_register_vcpu_mem_cb(instruction, accessed, NO_REGISTERS, READS_AND_WRITES, NULL);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    out = stdout;
    for (int i = 0; i < argc; i++) {
        if (!strcmp(argv[i], "mmio=off"))
            watches_memory = false;
        else if (!strcmp(argv[i], "count=off"))
            counts = false;
        else if (!strncmp(argv[i], "out=", strlen("out=")))
            out = fopen(argv[i] + strlen("out="), "w");
    }
    if (!out) {
        perror("count: out");
        return 1;
    }
    struct qemu_plugin_scoreboard *score = qemu_plugin_scoreboard_new(COUNTERS * sizeof(uint64_t));
    for (int i = 0; i < COUNTERS; i++)
        counters[i] = (qemu_plugin_u64){score, i * sizeof(uint64_t)};
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
