package main

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/rewind"
)

// How many lost transactions and tables are printed for people.
const (
	shownTransactions = 20
	shownTables       = 30
)

func renderLost(t *cli.Text, r *rewind.Report) {
	t.Blank()
	t.Line("A rewind loses %s and %s of WAL:", cli.Plural(r.Lost.Len(), "committed transaction", "committed transactions"), cli.Bytes(r.LostBytes))
	renderTables(t, r.Lost)
	renderTransactions(t, r.Lost.All(), r.Lost.Len(), "committed")
	if len(r.Prepared) > 0 {
		t.Blank()
		t.Line("and %s, prepared and not committed:", cli.Plural(len(r.Prepared), "transaction", "transactions"))
		renderTransactions(t, slices.Values(r.Prepared), len(r.Prepared), "prepared")
	}
	if r.Lost.Len() > 0 {
		t.Line("'dbrewind rescue' saves the rows.")
	}
}

// renderTables sums the lost transactions up by table.
func renderTables(t *cli.Text, lost *rewind.LostTransactions) {
	sums := map[string]*rewind.RelationChange{}
	for deeds, n := range lost.Deeds() {
		for _, c := range deeds.Changes {
			if !forUsers(c.Kind) {
				continue
			}
			s := sums[c.Relation]
			if s == nil {
				s = &rewind.RelationChange{Relation: c.Relation}
				sums[c.Relation] = s
			}
			s.Inserted, s.Updated, s.Deleted = s.Inserted+n*c.Inserted, s.Updated+n*c.Updated, s.Deleted+n*c.Deleted
		}
	}
	if len(sums) == 0 {
		return
	}
	var list []*rewind.RelationChange
	for _, s := range sums {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *rewind.RelationChange) int { return cmp.Compare(a.Relation, b.Relation) })
	tab := cli.NewTable("relation", ">rows inserted", ">updated", ">deleted")
	for _, s := range list[:min(len(list), shownTables)] {
		tab.Row(s.Relation, cli.Count(s.Inserted), cli.Count(s.Updated), cli.Count(s.Deleted))
	}
	t.Table(tab)
	if more := len(list) - shownTables; more > 0 {
		t.Line("and %s; --json has them all.", cli.Plural(more, "more relation", "more relations"))
	}
	t.Blank()
}

// forUsers tells whether a kind of relation is one that people look for.
func forUsers(kind string) bool { return kind != "toast" && kind != "catalog" && kind != "index" }

func renderTransactions(t *cli.Text, list iter.Seq[rewind.LostTransaction], n int, when string) {
	if n == 0 {
		return
	}
	tab := cli.NewTable(">xid", when, "what it did")
	shown := 0
	for x := range list {
		if shown == shownTransactions {
			break
		}
		shown++
		tab.Row(strconv.FormatUint(uint64(x.XID), 10), cli.Time(x.Time), deeds(&x))
	}
	t.Table(tab)
	if more := n - shown; more > 0 {
		t.Line("and %s; --json lists them all.", cli.Plural(more, "more", "more"))
	}
}

// deeds is what a transaction did, in one line.
func deeds(x *rewind.LostTransaction) string {
	var parts []string
	if x.GID != "" {
		parts = append(parts, "'"+x.GID+"'")
	}
	catalogs := false
	for _, c := range x.Changes {
		if forUsers(c.Kind) {
			parts = append(parts, c.Relation+rowsText(c))
		}
		catalogs = catalogs || c.Kind == "catalog"
	}
	for _, l := range []struct {
		word string
		list []string
	}{{"created ", x.Created}, {"truncated ", x.Truncated}, {"rewrote ", x.Rewritten}, {"dropped ", x.Removed}} {
		for _, name := range l.list {
			parts = append(parts, l.word+name)
		}
	}
	if len(parts) == 0 && catalogs {
		parts = append(parts, "changed the catalogs")
	}
	return strings.Join(parts, "; ")
}

// rowsText writes " +3 ~2 -1": rows inserted, updated and deleted.
func rowsText(c rewind.RelationChange) string {
	var b strings.Builder
	for _, n := range []struct {
		sign  string
		count int64
	}{{"+", c.Inserted}, {"~", c.Updated}, {"-", c.Deleted}} {
		if n.count != 0 {
			fmt.Fprintf(&b, " %s%d", n.sign, n.count)
		}
	}
	return b.String()
}
