// SPDX-License-Identifier: GPL-2.0-only
/*
 * User stacks at page faults: who makes a process grow. `on_fault` records one process completely, with what unmaps and
 * moves its pages; `on_sample` records some pages of many processes, cheaply enough to stay on. A reader attaches one of
 * them, and makes the maps of the other small before it loads.
 *
 * Runs at the software event PERF_COUNT_SW_PAGE_FAULTS, which the kernel raises when a fault has been handled, be it of
 * the program itself or of the kernel on its behalf (a read into a fresh buffer). There is one event for each processor,
 * and all faults of the machine pass here: others than those asked for cost a comparison.
 */
#include "kernel.h"
#include "records.h"

#define STACKS_MOST 16384
#define DEPTH_MOST 127 /* PERF_MAX_STACK_DEPTH */
#define RING_BYTES (32 << 20)
#define COPIES_BYTES (16 << 20)
#define COPY_SOME 13
#define COPY_PART 64 /* words that are read at once: a stack may end anywhere */
#define WATCHED_MOST 1024
#define WAKE_BYTES (256 << 10) /* half of the ring that host/bpf/samples.py asks for */
#define SHIFT_MOST 24
#define PAGE_SHIFT 12
#define NS_PER_TICK 10000000 /* USER_HZ is 100 */
#define MAP_FIXED 0x10 /* include/uapi/asm-generic/mman-common.h */
#define MADV_DONTNEED 4
#define MADV_DONTNEED_LOCKED 24
/* arch/x86/include/uapi/asm/ptrace.h, struct pt_regs; arch/x86/entry/syscalls/syscall_64.tbl */
#define REGISTER_BP 4
#define REGISTER_R10 7
#define REGISTER_DX 12
#define REGISTER_SI 13
#define REGISTER_DI 14
#define REGISTER_ORIG_AX 15
#define REGISTER_IP 16
#define REGISTER_CS 17
#define REGISTER_SP 19
#define REGISTERS 21
#define CALL_MMAP 9
#define CALL_MUNMAP 11
#define CALL_BRK 12
#define CALL_MREMAP 25
#define CALL_MADVISE 28

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fault_state);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, STACKS_MOST);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, DEPTH_MOST * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} faults SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, COPIES_BYTES);
} copies SEC(".maps");

static __u64 user_stack(struct bpf_perf_event_data *ctx)
{
	return ctx->regs[REGISTER_SP]; /* the kernel's own where it faults for the program: that cannot be read, then */
}

/* Copies what the stack can be unwound from; returns the copy's number, 0 where there is no room for it. */
static __u32 copy_stack(struct bpf_perf_event_data *ctx, struct fault_state *asked, __u64 fault)
{
	__u64 regs[REGISTERS] = {};
	struct stack_copy *copy;
	__u32 number;
	int part;

	if (ctx->regs[REGISTER_CS] & 3) {
		regs[REGISTER_IP] = ctx->regs[REGISTER_IP];
		regs[REGISTER_SP] = ctx->regs[REGISTER_SP];
		regs[REGISTER_BP] = ctx->regs[REGISTER_BP];
	} else if (bpf_probe_read_kernel(regs, sizeof(regs), (void *)bpf_task_pt_regs(bpf_get_current_task_btf()))) {
		return 0; /* the kernel faults on the program's behalf: its registers are at the bottom of the kernel's stack */
	}
	/* When they are not fetched fast enough, some of all faults are copied rather than all of the first ones. */
	if (bpf_ringbuf_query(&copies, BPF_RB_AVAIL_DATA) > COPIES_BYTES / 2 && fault % COPY_SOME)
		return 0;
	copy = bpf_ringbuf_reserve(&copies, sizeof(*copy), 0);
	if (!copy)
		return 0;
	number = __sync_fetch_and_add(&asked->copied, 1) + 1;
	copy->number = number;
	copy->ip = regs[REGISTER_IP];
	copy->sp = regs[REGISTER_SP];
	copy->bp = regs[REGISTER_BP];
	copy->bytes = 0;
#pragma unroll
	for (part = 0; part < COPY_WORDS / COPY_PART; part++) {
		if (bpf_probe_read_user(copy->words + part * COPY_PART, COPY_PART * sizeof(__u64),
					(void *)(regs[REGISTER_SP] + part * COPY_PART * sizeof(__u64))))
			break;
		copy->bytes += COPY_PART * sizeof(__u64);
	}
	bpf_ringbuf_submit(copy, 0);
	return number;
}

SEC("perf_event")
int on_fault(struct bpf_perf_event_data *ctx)
{
	struct fault_state *asked;
	struct fault_record *record;
	__u64 ids = bpf_get_current_pid_tgid();
	__u32 row = 0;
	__u64 number;

	asked = bpf_map_lookup_elem(&state, &row);
	if (!asked || ids >> 32 != asked->pid)
		return 0;
	number = __sync_fetch_and_add(&asked->seen, 1);
	if (asked->every > 1 && number % asked->every)
		return 0;
	record = bpf_ringbuf_reserve(&faults, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&asked->dropped, 1);
		return 0;
	}
	record->address = ctx->addr;
	record->time_ns = bpf_ktime_get_ns();
	record->thread = ids;
	record->copy = copy_stack(ctx, asked, number);
	record->reserved = 0;
	if (bpf_probe_read_user(record->words, sizeof(record->words), (void *)user_stack(ctx))) {
		__builtin_memset(record->words, 0, sizeof(record->words)); /* the stack ends before */
		bpf_probe_read_user(record->words, sizeof(__u64), (void *)user_stack(ctx));
	}
	record->stack = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WATCHED_MOST);
	__type(key, __u32);
	__type(value, struct sample_rate);
} watched SEC(".maps");

/*
 * Whether a page is one of 1 << shift: by a hash of its number, so that all faults of a page are recorded or none, and
 * the pages of a larger shift are among those of a smaller one. The mix is MurmurHash3's finalizer (public domain, Austin
 * Appleby); memsculpt/profile/sampling.py computes the same.
 */
static int is_chosen(__u64 page, __u64 seed, __u32 shift)
{
	__u64 mixed = page + seed;

	if (!shift)
		return 1;
	mixed ^= mixed >> 33;
	mixed *= 0xff51afd7ed558ccdULL;
	mixed ^= mixed >> 33;
	mixed *= 0xc4ceb9fe1a85ec53ULL;
	mixed ^= mixed >> 33;
	return mixed >> (64 - (shift & 63)) == 0;
}

SEC("perf_event")
int on_sample(struct bpf_perf_event_data *ctx)
{
	struct task_struct *leader;
	struct sample_record *record;
	struct sample_rate *rate;
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	__u64 began;
	__u32 shift;

	rate = bpf_map_lookup_elem(&watched, &pid);
	if (!rate)
		return 0;
	__sync_fetch_and_add(&rate->seen, 1);
	shift = rate->shift;
	if (!is_chosen(ctx->addr >> PAGE_SHIFT, rate->start_ticks, shift))
		return 0;
	leader = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), group_leader);
	began = BPF_CORE_READ(leader, start_boottime);
	if (began / NS_PER_TICK != rate->start_ticks)
		return 0; /* the pid was used again */
	record = bpf_ringbuf_reserve(&faults, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&rate->dropped, 1);
		return 0;
	}
	record->address = ctx->addr;
	record->time_ns = bpf_ktime_get_ns();
	record->pid = pid;
	record->shift = shift;
	record->depth = bpf_get_stack(ctx, record->frames, sizeof(record->frames), BPF_F_USER_STACK);
	if (bpf_probe_read_user(record->words, sizeof(record->words), (void *)user_stack(ctx))) {
		__builtin_memset(record->words, 0, sizeof(record->words));
		bpf_probe_read_user(record->words, sizeof(__u64), (void *)user_stack(ctx));
	}
	/* Who reads is woken when there is much; what is little he comes for by himself. */
	bpf_ringbuf_submit(record, bpf_ringbuf_query(&faults, BPF_RB_AVAIL_DATA) > WAKE_BYTES ? BPF_RB_FORCE_WAKEUP :
												 BPF_RB_NO_WAKEUP);
	/* A burst is thinned out here and at once: half of the pages from now on, as often as needed. */
	__sync_fetch_and_add(&rate->left, -1);
	if (rate->left <= 0 && shift < SHIFT_MOST) {
		rate->shift = shift + 1;
		rate->left = rate->refill;
	}
	return 0;
}

/* What makes pages go away is told in the same order as the faults, so that a page that comes twice counts twice. */
static int tell(__u64 address, __u64 size, __s32 what)
{
	struct fault_state *asked;
	struct fault_record *record;
	__u64 ids = bpf_get_current_pid_tgid();
	__u32 row = 0;

	asked = bpf_map_lookup_elem(&state, &row);
	if (!asked || ids >> 32 != asked->pid)
		return 0;
	record = bpf_ringbuf_reserve(&faults, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&asked->dropped, 1);
		return 0;
	}
	record->address = address;
	record->words[0] = size;
	record->stack = what;
	record->thread = ids;
	record->time_ns = bpf_ktime_get_ns();
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* sys_enter(regs, number) and sys_exit(regs, result): raw, because tracefs need not be mounted for them. */
SEC("raw_tp/sys_enter")
int on_call(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 regs[REGISTERS] = {};
	__u64 number = ctx->args[1];

	if (number != CALL_MUNMAP && number != CALL_MMAP && number != CALL_MADVISE && number != CALL_BRK &&
	    number != CALL_MREMAP)
		return 0;
	if (bpf_probe_read_kernel(regs, sizeof(regs), (void *)ctx->args[0]))
		return 0;
	switch (number) {
	case CALL_MMAP:
		if (!(regs[REGISTER_R10] & MAP_FIXED))
			return 0;
		break;
	case CALL_MADVISE:
		if (regs[REGISTER_DX] != MADV_DONTNEED && regs[REGISTER_DX] != MADV_DONTNEED_LOCKED)
			return 0;
		break;
	case CALL_BRK:
		return regs[REGISTER_DI] ? tell(regs[REGISTER_DI], 0, PAGES_BROKEN_OFF) : 0;
	case CALL_MREMAP:
		return tell(regs[REGISTER_DI], regs[REGISTER_SI], PAGES_MOVING);
	}
	return tell(regs[REGISTER_DI], regs[REGISTER_SI], PAGES_UNMAPPED);
}

SEC("raw_tp/sys_exit")
int on_return(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), (void *)(ctx->args[0] + 8 * REGISTER_ORIG_AX));
	return number == CALL_MREMAP ? tell(ctx->args[1], 0, PAGES_MOVED) : 0;
}

char LICENSE[] SEC("license") = "GPL";
