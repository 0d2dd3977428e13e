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

		bpf_core_read(&count, sizeof(count), &old->rss_stat.count[kind].counter);
	} else {
		/* Only a constant index is looked up in the kernel's layout, so the size of an element is asked for. */
		void *counter = (void *)mm->rss_stat + kind * bpf_core_type_size(struct percpu_counter);

		bpf_core_read(&count, sizeof(count), &((struct percpu_counter *)counter)->count);
	}
	return count > 0 ? count : 0; /* parts of it wait on other processors, and those may be negative */
}

/*
 * The iterator hands in a task whose type the verifier knows: its fields, and those of what it points to, are read
 * directly, at a tenth of the cost of a helper's call each. A pointer that has become stale reads as zeros.
 */
static void read_process(struct task_struct *leader, struct task_record *record)
{
	struct signal_struct *signal = leader->signal;
	struct mm_struct *mm = leader->mm;

	if (signal) {
		record->cpu_ns += signal->sum_sched_runtime;
		record->minor_faults += signal->min_flt;
		record->major_faults += signal->maj_flt;
		if (bpf_core_field_exists(signal->ioac.read_bytes)) {
			record->read_bytes += signal->ioac.read_bytes;
			record->written_bytes += signal->ioac.write_bytes;
		}
	}
	if (!mm)
		return;
	record->file_pages = pages_of(mm, MM_FILEPAGES);
	record->anon_pages = pages_of(mm, MM_ANONPAGES);
	record->swapped_pages = pages_of(mm, MM_SWAPENTS);
	record->shmem_pages = pages_of(mm, MM_SHMEMPAGES);
}

static __u64 number_of(struct cgroup *cgroup)
{
	struct kernfs_node *node = cgroup ? cgroup->kn : NULL;

	return node ? node->id : 0;
}

SEC("iter/task")
int list_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_record record = {};
	struct css_set *set;
	struct cred *cred;

	if (!task)
		return 0;
	record.pid = task->tgid;
	record.thread = task->pid;
	record.flags = task->flags;
	cred = task->real_cred;
	if (cred)
		record.user = cred->uid.val;
	record.start_boottime_ns = task->start_boottime;
	record.cpu_ns = task->se.sum_exec_runtime;
	record.minor_faults = task->min_flt;
	record.major_faults = task->maj_flt;
	if (bpf_core_field_exists(task->ioac.read_bytes)) {
		record.read_bytes = task->ioac.read_bytes;
		record.written_bytes = task->ioac.write_bytes;
	}
	set = task->cgroups;
	if (set) {
		record.unified_cgroup = number_of(set->dfl_cgrp);
		if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
			struct cgroup_subsys_state *css = NULL;
			__u32 row = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

			bpf_core_read(&css, sizeof(css), &set->subsys[row]);
			record.memory_cgroup = BPF_CORE_READ(css, cgroup, kn, id);
		}
	}
	BPF_CORE_READ_STR_INTO(&record.comm, task, comm);
	if (record.pid == record.thread)
		read_process(task, &record);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* bpf_probe_read_kernel and the iterator's helpers are for programs under the GPL. */
char LICENSE[] SEC("license") = "GPL";
