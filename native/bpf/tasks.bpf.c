// SPDX-License-Identifier: GPL-2.0-only
/*
 * One binary record for each thread on the machine, in one read.
 *
 * An iterator (BPF_TRACE_ITER, since 5.8): whoever reads its file runs it. It takes no lock for longer than one task and
 * follows the pointers of the task that it is given with fault-tolerant reads, so a task that exits meanwhile costs a
 * zero and nothing else.
 */
#include "kernel.h"
#include "records.h"

#define MM_FILEPAGES 0 /* include/linux/mm_types_task.h */
#define MM_ANONPAGES 1
#define MM_SWAPENTS 2
#define MM_SHMEMPAGES 3

static __s64 pages_of(struct mm_struct *mm, int kind)
{
	__s64 count = 0;

	if (bpf_core_type_exists(struct mm_rss_stat___before_6_2)) {
		struct mm_struct___before_6_2 *old = (void *)mm;

		bpf_core_read(&count, sizeof(count), &old->rss_stat.count[kind]);
	} else {
		/* Only a constant index is looked up in the kernel's layout, so the size of an element is asked for. */
		void *counter = (void *)mm->rss_stat + kind * bpf_core_type_size(struct percpu_counter);

		bpf_core_read(&count, sizeof(count), &((struct percpu_counter *)counter)->count);
	}
	return count > 0 ? count : 0; /* parts of it wait on other processors, and those may be negative */
}

static void read_process(struct task_struct *leader, struct task_record *record)
{
	struct signal_struct *signal = BPF_CORE_READ(leader, signal);
	struct mm_struct *mm = BPF_CORE_READ(leader, mm);

	record->cpu_ns += BPF_CORE_READ(signal, sum_sched_runtime);
	record->minor_faults += BPF_CORE_READ(signal, min_flt);
	record->major_faults += BPF_CORE_READ(signal, maj_flt);
	if (bpf_core_field_exists(signal->ioac.read_bytes)) {
		record->read_bytes += BPF_CORE_READ(signal, ioac.read_bytes);
		record->written_bytes += BPF_CORE_READ(signal, ioac.write_bytes);
	}
	if (!mm)
		return;
	record->file_pages = pages_of(mm, MM_FILEPAGES);
	record->anon_pages = pages_of(mm, MM_ANONPAGES);
	record->swapped_pages = pages_of(mm, MM_SWAPENTS);
	record->shmem_pages = pages_of(mm, MM_SHMEMPAGES);
}

SEC("iter/task")
int list_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_record record = {};

	if (!task)
		return 0;
	record.pid = BPF_CORE_READ(task, tgid);
	record.thread = BPF_CORE_READ(task, pid);
	record.flags = BPF_CORE_READ(task, flags);
	record.user = BPF_CORE_READ(task, real_cred, uid.val);
	record.start_boottime_ns = BPF_CORE_READ(task, start_boottime);
	record.cpu_ns = BPF_CORE_READ(task, se.sum_exec_runtime);
	record.minor_faults = BPF_CORE_READ(task, min_flt);
	record.major_faults = BPF_CORE_READ(task, maj_flt);
	if (bpf_core_field_exists(task->ioac.read_bytes)) {
		record.read_bytes = BPF_CORE_READ(task, ioac.read_bytes);
		record.written_bytes = BPF_CORE_READ(task, ioac.write_bytes);
	}
	record.unified_cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
		struct css_set *set = BPF_CORE_READ(task, cgroups);
		struct cgroup_subsys_state *css = NULL;
		__u32 row = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

		bpf_core_read(&css, sizeof(css), &set->subsys[row]);
		record.memory_cgroup = BPF_CORE_READ(css, cgroup, kn, id);
	}
	BPF_CORE_READ_STR_INTO(&record.comm, task, comm);
	if (record.pid == record.thread)
		read_process(task, &record);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* bpf_probe_read_kernel and the iterator's helpers are for programs under the GPL. */
char LICENSE[] SEC("license") = "GPL";
