// SPDX-License-Identifier: GPL-2.0-only
/*
 * A walk over the page tables of one process: the tables of the last level are copied as they are, upper levels are
 * only followed, holes are passed over at the level at which they open. What the bits mean is user space's business.
 *
 * x86-64, four or five levels (Documentation/arch/x86/x86_64/mm.rst). Tables lie in the kernel's direct map of all
 * memory, at an address that is drawn at boot; user space finds it by trying (host/bpf/pagewalk.py) and hands it in.
 *
 * No lock of the process is taken, so it never waits for us. It may change its memory in the meantime:
 * - the iterator runs inside RCU, and freed page tables are reused only afterwards where the kernel frees them by RCU;
 * - after a table was copied, the entry that led to it is read again, and after each GiB the entry above: when one has
 *   changed, what came through it is dropped and read once more;
 * - at the end the process must still have the same memory.
 */
#include "kernel.h"
#include "records.h"

#define TABLES_MOST 512   /* 1 GiB of small pages in a call */
#define RECORDS_MOST 4096
#define STEPS_MOST 65536  /* entries looked at in a call: some milliseconds at worst */
#define TORN_MOST 64      /* a process that changes faster than it can be read is told, not fought with */
#define TABLE_BYTES 4096

#define ENTRY_PRESENT 1ULL
#define ENTRY_HUGE (1ULL << 7)
#define ENTRY_PROTNONE (1ULL << 8) /* of a huge page that is not to be accessed now (NUMA hinting) */
#define ENTRY_FRAME 0x000ffffffffff000ULL

#define PMD_SHIFT 21
#define PUD_SHIFT 30
#define P4D_SHIFT 39
#define PGD5_SHIFT 48

struct table {
	__u8 bytes[TABLE_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk_state);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RECORDS_MOST);
	__type(key, __u32);
	__type(value, struct walk_record);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, TABLES_MOST);
	__type(key, __u32);
	__type(value, struct table);
} tables SEC(".maps");

struct walk {
	__u64 base;
	__u64 at;
	__u64 end;
	__u64 pgd;
	__u64 pmd_table;   /* kernel address of the table that covers `at`; 0: not known yet */
	__u64 pud_place;   /* where the entry stands that led to it, and what it was */
	__u64 pud_entry;
	__u64 gib_begin;
	__u32 levels;
	__u32 record_count;
	__u32 table_count;
	__u32 torn_count;
	__u32 failed_count;
	__u32 gib_records; /* counts before the current GiB */
	__u32 gib_tables;
	__u32 done;
};

static __u64 address_after(__u64 address, int shift)
{
	return ((address >> shift) + 1) << shift;
}

static __u64 index_of(__u64 address, int shift)
{
	return (address >> shift) & 511;
}

static __u64 read_entry(struct walk *walk, __u64 place)
{
	__u64 entry = 0;

	if (bpf_probe_read_kernel(&entry, sizeof(entry), (void *)place))
		walk->failed_count++;
	return entry;
}

static __u64 table_at(struct walk *walk, __u64 entry)
{
	return walk->base + (entry & ENTRY_FRAME);
}

static int write_record(struct walk *walk, __u64 entry, __s32 table, __u32 pages)
{
	__u32 row = walk->record_count;
	struct walk_record *record = bpf_map_lookup_elem(&records, &row);

	if (!record)
		return 0;
	record->address = walk->at;
	record->entry = entry;
	record->table = table;
	record->pages = pages;
	walk->record_count = row + 1;
	return 1;
}

/*
 * The GiB is through, or the walk is: what came of it counts only when the way to it is still the same. 0: it is to be
 * read again.
 */
static int leave_gib(struct walk *walk)
{
	if (!walk->pmd_table)
		return 1;
	walk->pmd_table = 0;
	if (read_entry(walk, walk->pud_place) == walk->pud_entry)
		return 1;
	walk->record_count = walk->gib_records;
	walk->table_count = walk->gib_tables;
	if (walk->torn_count++ < TORN_MOST)
		walk->at = walk->gib_begin;
	return walk->at != walk->gib_begin;
}

/* Find the table of the third level that covers `at`, or pass over the hole. 1: found. */
static int enter_gib(struct walk *walk)
{
	__u64 table = walk->pgd, entry;

	if (walk->levels == 5) {
		entry = read_entry(walk, table + 8 * index_of(walk->at, PGD5_SHIFT));
		if (!(entry & ENTRY_PRESENT)) {
			walk->at = address_after(walk->at, PGD5_SHIFT);
			return 0;
		}
		table = table_at(walk, entry);
	}
	entry = read_entry(walk, table + 8 * index_of(walk->at, P4D_SHIFT));
	if (!(entry & ENTRY_PRESENT)) {
		walk->at = address_after(walk->at, P4D_SHIFT);
		return 0;
	}
	table = table_at(walk, entry);
	walk->pud_place = table + 8 * index_of(walk->at, PUD_SHIFT);
	entry = read_entry(walk, walk->pud_place);
	if (!(entry & (ENTRY_PRESENT | ENTRY_PROTNONE))) {
		walk->at = address_after(walk->at, PUD_SHIFT);
		return 0;
	}
	if (entry & ENTRY_HUGE) {
		walk->at = walk->at >> PUD_SHIFT << PUD_SHIFT;
		if (write_record(walk, entry, -1, 512 * 512))
			walk->at = address_after(walk->at, PUD_SHIFT);
		return 0;
	}
	walk->pud_entry = entry;
	walk->pmd_table = table_at(walk, entry);
	walk->gib_begin = walk->at;
	walk->gib_records = walk->record_count;
	walk->gib_tables = walk->table_count;
	return 1;
}

static long step(__u32 number, void *context)
{
	struct walk *walk = context;
	__u64 place, entry, begin;
	struct table *table;
	__u32 slot;

	if (walk->at >= walk->end) {
		walk->done = leave_gib(walk);
		return walk->done;
	}
	if (walk->table_count >= TABLES_MOST || walk->record_count >= RECORDS_MOST)
		return leave_gib(walk);
	if (!walk->pmd_table && !enter_gib(walk))
		return 0;
	begin = walk->at;
	place = walk->pmd_table + 8 * index_of(begin, PMD_SHIFT);
	entry = read_entry(walk, place);
	if ((entry & ENTRY_HUGE) && (entry & (ENTRY_PRESENT | ENTRY_PROTNONE))) {
		walk->at = begin >> PMD_SHIFT << PMD_SHIFT;
		write_record(walk, entry, -1, 512);
	} else if (entry & ENTRY_PRESENT) {
		slot = walk->table_count;
		table = bpf_map_lookup_elem(&tables, &slot);
		if (!table)
			return 1;
		if (bpf_probe_read_kernel(table, sizeof(*table), (void *)table_at(walk, entry))) {
			walk->failed_count++;
		} else if (read_entry(walk, place) != entry) {
			if (walk->torn_count++ < TORN_MOST)
				return 0;
		} else {
			walk->at = begin >> PMD_SHIFT << PMD_SHIFT;
			write_record(walk, entry, slot, 512);
			walk->table_count = slot + 1;
		}
	}
	walk->at = address_after(begin, PMD_SHIFT);
	if (!index_of(walk->at, PMD_SHIFT))
		leave_gib(walk);
	return 0;
}

SEC("iter/task")
int walk_pages(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct walk_state *asked;
	struct mm_struct *mm;
	struct walk walk = {};
	__u32 row = 0;

	asked = bpf_map_lookup_elem(&state, &row);
	if (!task || !asked || BPF_CORE_READ(task, tgid) != asked->pid || asked->status > WALK_NO_MEMORY)
		return 0;
	mm = BPF_CORE_READ(task, mm);
	if (!mm) {
		asked->status = WALK_NO_MEMORY; /* this thread has ended; another may still hold the memory */
		return 0;
	}
	walk.base = asked->base;
	walk.at = asked->at;
	walk.end = asked->end;
	walk.levels = asked->levels;
	walk.pgd = (__u64)BPF_CORE_READ(mm, pgd);
	asked->root = walk.pgd;
	bpf_loop(STEPS_MOST, step, &walk, 0);
	if (!walk.done && walk.pmd_table)
		leave_gib(&walk);
	asked->at = walk.at;
	asked->record_count = walk.record_count;
	asked->table_count = walk.table_count;
	asked->torn_count = walk.torn_count;
	asked->failed_count = walk.failed_count;
	asked->status = walk.done ? WALK_DONE : WALK_MORE;
	if (BPF_CORE_READ(task, mm) != mm || BPF_CORE_READ(mm, mm_users.counter) <= 0)
		asked->status = WALK_GONE;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
