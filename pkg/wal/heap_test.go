package wal

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the oracle says of a record that changes rows.
var (
	oracleInsert   = regexp.MustCompile(`^INSERT(?:\+INIT)? off:? (\d+)`)
	oracleMulti    = regexp.MustCompile(`^MULTI_INSERT(?:\+INIT)? (?:ntuples: )?(\d+)`)
	oracleDelete   = regexp.MustCompile(`^DELETE (?:xmax: \d+, )?off:? (\d+),? .*flags:? 0x([0-9A-F]{2})`)
	oracleUpdate   = regexp.MustCompile(`^(?:HOT_)?UPDATE(?:\+INIT)? .*?(?:old_)?off:? (\d+),? .*(?:; new off|new_off:) (\d+)`)
	oracleTruncate = regexp.MustCompile(`^TRUNCATE .*nrelids:? \d+,? relids:? \[?([0-9 ,]+)`)
)

// fromOracle puts the oracle's line in the words of wordsOf; "" for a record
// that changes no rows.
func fromOracle(t *testing.T, o oracleRecord) string {
	if o.RMGR == "Heap2" {
		if m := oracleMulti.FindStringSubmatch(o.Desc); m != nil {
			return "insert of " + m[1]
		}
		return ""
	}
	for name, re := range map[string]*regexp.Regexp{"insert": oracleInsert, "delete": oracleDelete, "update": oracleUpdate, "truncate": oracleTruncate} {
		m := re.FindStringSubmatch(o.Desc)
		switch {
		case m == nil:
		case name == "update":
			old := strings.Split(o.Refs, ",")
			parts := strings.Split(strings.TrimSuffix(strings.TrimSuffix(old[len(old)-1], ":image"), ":check"), ":")
			return fmt.Sprintf("update of (%s,%s) to %s keys %v", parts[2], m[1], m[2], strings.Contains(o.Desc, "KEYS_UPDATED"))
		case name == "delete":
			if flags, _ := strconv.ParseUint(m[2], 16, 8); flags&deleteIsSuper != 0 {
				name = "retract"
			}
			return name + " at " + m[1]
		case name == "truncate":
			return "truncate of " + strings.Join(strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == ',' }), " ")
		default:
			return name + " at " + m[1]
		}
	}
	for _, word := range []string{"INSERT", "DELETE", "UPDATE", "HOT_UPDATE", "TRUNCATE"} {
		if strings.HasPrefix(o.Desc, word+" ") {
			t.Fatalf("the test does not read %q", o.Desc)
		}
	}
	return ""
}

func wordsOf(c *HeapChange, multi bool) string {
	switch {
	case multi:
		return fmt.Sprintf("insert of %d", len(c.Offsets))
	case c.Op == HeapTruncate:
		return "truncate of " + strings.Trim(fmt.Sprint(c.Relations), "[]")
	case c.Op == HeapUpdate:
		return fmt.Sprintf("update of %s to %d keys %v", c.Old, c.Offsets[0], c.KeyChanged)
	case c.Op == HeapConfirm:
		return ""
	}
	return fmt.Sprintf("%s at %d", c.Op, c.Offsets[0])
}

// Every change of rows in the fixtures is what pg_waldump says, and so is the
// number of rows that each transaction inserts, updates and deletes.
func TestHeapEqualsOracle(t *testing.T) {
	seen := map[string]bool{}
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		r := newTestReader(t, f.sources[i], f.options(i))
		var c HeapChange
		got, want := map[string]int{}, map[string]int{}
		for _, o := range f.records[i] {
			if !r.Next() {
				t.Fatal(r.End())
			}
			rec := r.Record()
			ok, err := DecodeHeap(rec, &c)
			if err != nil {
				t.Fatal(err)
			}
			text := ""
			if ok {
				text = wordsOf(&c, rec.RMID == RmHeap2)
				got[fmt.Sprintf("%d %s", rec.XID, c.Op)] += len(c.Offsets)
				seen[fmt.Sprint(f.Major, c.Op)] = true
			}
			oracle := ""
			if o.RMGR == "Heap" || o.RMGR == "Heap2" {
				oracle = fromOracle(t, o)
			}
			if text != oracle {
				t.Fatalf("%s: decoded %q, the oracle has %q (%s)", rec.LSN, text, oracle, o.Desc)
			}
			if ok && c.Op != HeapTruncate && !strings.HasPrefix(o.Refs, fmt.Sprintf("0:%s:%d", c.File, c.Block)) {
				t.Fatalf("%s: at %s block %d, the oracle has %s", rec.LSN, c.File, c.Block, o.Refs)
			}
			count(want, o, oracle)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("rows by transaction and operation (-oracle +ours):\n%s", d)
		}
	})
	for _, major := range testMajors {
		for _, op := range []HeapOp{HeapInsert, HeapUpdate, HeapDelete} {
			if !seen[fmt.Sprint(major, op)] {
				t.Errorf("PostgreSQL %d: the fixtures hold no %s", major, op)
			}
		}
	}
}

// count adds a line of the oracle to the sums; confirm is ours alone.
func count(sums map[string]int, o oracleRecord, words string) {
	name, rest, _ := strings.Cut(words, " ")
	switch n, err := strconv.Atoi(strings.TrimPrefix(rest, "of ")); {
	case name == "" && (o.RMGR != "Heap" || !strings.Contains(o.Desc, "CONFIRM")):
	case name == "":
		sums[fmt.Sprint(o.XID, " confirm")]++
	case name == "truncate":
		sums[fmt.Sprint(o.XID, " truncate")] += 0
	case err == nil && name == "insert" && strings.HasPrefix(rest, "of "):
		sums[fmt.Sprint(o.XID, " insert")] += n
	default:
		sums[fmt.Sprint(o.XID, " "+name)]++
	}
}

// Main data of any shorter length is an error or nothing, never a panic.
func TestHeapTruncatedMain(t *testing.T) {
	for _, major := range testMajors {
		f := loadFixture(t, major)
		r := newTestReader(t, f.sources[0], f.options(0))
		var c HeapChange
		for n := 0; r.Next() && n < 3000; n++ {
			rec := *r.Record()
			if ok, err := DecodeHeap(&rec, &c); !ok || err != nil {
				continue
			}
			for n := range rec.Main {
				short := rec
				short.Main = rec.Main[:n]
				if _, err := DecodeHeap(&short, &c); err != nil && !errors.Is(err, ErrRecordContent) {
					t.Fatalf("%v is not ErrRecordContent", err)
				}
			}
		}
	}
}
