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

static __s64 not_negative(__s64 count)
{
	return count > 0 ? count : 0; /* parts of it wait on other processors, and those may be negative */
}

static void read_memory(struct mm_struct *mm, struct task_record *record)
{
	if (bpf_core_type_exists(struct mm_rss_stat___before_6_2)) {
		struct mm_struct___before_6_2 *old = (void *)mm;

		record->file_pages = not_negative(BPF_CORE_READ(old, rss_stat.count[MM_FILEPAGES].counter));
		record->anon_pages = not_negative(BPF_CORE_READ(old, rss_stat.count[MM_ANONPAGES].counter));
		record->swapped_pages = not_negative(BPF_CORE_READ(old, rss_stat.count[MM_SWAPENTS].counter));
		record->shmem_pages = not_negative(BPF_CORE_READ(old, rss_stat.count[MM_SHMEMPAGES].counter));
	} else {
		record->file_pages = not_negative(mm->rss_stat[MM_FILEPAGES].count);
		record->anon_pages = not_negative(mm->rss_stat[MM_ANONPAGES].count);
		record->swapped_pages = not_negative(mm->rss_stat[MM_SWAPENTS].count);
		record->shmem_pages = not_negative(mm->rss_stat[MM_SHMEMPAGES].count);
	}
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
	read_memory(mm, record);
}

static __u64 number_of(struct cgroup *cgroup)
{
	struct kernfs_node *node = cgroup ? cgroup->kn : NULL;

	return node ? node->id : 0;
}

/*
 * Which row of the kernel's table a controller has depends on how that was built. A row that is known when the program
 * is loaded can be read directly, one that is computed not; all but one of these branches are cut out then.
 */
static struct cgroup_subsys_state *controller(struct css_set *set, __u32 row)
{
	switch (row) {
	case 0: return set->subsys[0];
	case 1: return set->subsys[1];
	case 2: return set->subsys[2];
	case 3: return set->subsys[3];
	case 4: return set->subsys[4];
	case 5: return set->subsys[5];
	case 6: return set->subsys[6];
	case 7: return set->subsys[7];
	}
	return NULL;
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
			struct cgroup_subsys_state *css = controller(set, bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id));

			if (css)
				record.memory_cgroup = number_of(css->cgroup);
		}
	}
	bpf_core_read(&record.comm, sizeof(record.comm), &task->comm);
	if (record.pid == record.thread)
		read_process(task, &record);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* bpf_probe_read_kernel and the iterator's helpers are for programs under the GPL. */
char LICENSE[] SEC("license") = "GPL";
