/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's structures as far as our programs read them. Not one of them is whole: what stands here is looked up by
 * name in the BTF of the running kernel when a program is loaded (CO-RE), so order and offsets do not matter.
 */
#ifndef MEMSCULPT_KERNEL_H
#define MEMSCULPT_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

/* include/uapi/linux/bpf.h */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_STACK_TRACE 7
#define BPF_MAP_TYPE_RINGBUF 27
#define BPF_F_USER_STACK (1U << 8)
#define BPF_RB_NO_WAKEUP (1U << 0)
#define BPF_RB_FORCE_WAKEUP (1U << 1)
#define BPF_RB_AVAIL_DATA 0
#define BPF_F_MMAPABLE (1U << 10)

/* What a raw tracepoint is handed: the arguments of the tracepoint itself */
struct bpf_raw_tracepoint_args {
	__u64 args[2];
};

/* include/uapi/linux/bpf_perf_event.h, with struct pt_regs of x86-64: fixed for ever, so not looked up in BTF */
struct bpf_perf_event_data {
	__u64 regs[21];
	__u64 sample_period;
	__u64 addr;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct percpu_counter {
	__s64 count;
};

/* atomic_long_t: a structure of one number, and libbpf tells an array of those from an array of numbers */
typedef struct {
	__s64 counter;
} atomic64_t;

/* Until 6.1 (f1a7941243c1) */
struct mm_rss_stat___before_6_2 {
	atomic64_t count[4];
};

struct mm_struct___before_6_2 {
	struct mm_rss_stat___before_6_2 rss_stat;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	unsigned long pgd;
} pgd_t;

struct mm_struct {
	struct percpu_counter rss_stat[4];
	pgd_t *pgd;
	atomic_t mm_users;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};

struct task_io_accounting {
	__u64 read_bytes;
	__u64 write_bytes;
};

struct sched_entity {
	__u64 sum_exec_runtime;
};

struct signal_struct {
	unsigned long min_flt;
	unsigned long maj_flt;
	unsigned long long sum_sched_runtime;
	struct task_io_accounting ioac;
};

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	struct mm_struct *mm;
	struct signal_struct *signal;
	struct task_struct *group_leader;
	struct css_set *cgroups;
	struct cred *real_cred;
	struct sched_entity se;
	struct task_io_accounting ioac;
	unsigned long min_flt;
	unsigned long maj_flt;
	__u64 start_boottime;
	char comm[16];
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

enum cgroup_subsys_id {
	memory_cgrp_id = 4,
};

#pragma clang attribute pop

#endif
