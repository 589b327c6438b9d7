package pgtest

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"tidemark/internal/postgres"
)

// Majors returns the major versions to test on: those in TIDEMARK_PG_MAJORS
// ("15,17" or "all"), by default 15 (or the preferred installation) and the
// newest one. The test fails where no server is installed.
func Majors(t testing.TB) []int {
	t.Helper()
	installed := installed()
	if len(installed) == 0 {
		t.Fatal("no PostgreSQL is installed; scripts/postgres.sh installs one")
	}
	switch list := os.Getenv("TIDEMARK_PG_MAJORS"); list {
	case "all":
		return installed
	case "":
		first := installed[0]
		for _, m := range installed {
			if m == 15 {
				first = 15
			}
		}
		if last := installed[len(installed)-1]; last != first {
			return []int{first, last}
		}
		return []int{first}
	default:
		var majors []int
		for _, word := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
			m, err := strconv.Atoi(word)
			if err != nil {
				t.Fatalf("TIDEMARK_PG_MAJORS=%q: %q is no major version", list, word)
			}
			if _, err := postgres.Find(m, ""); err != nil {
				t.Fatalf("TIDEMARK_PG_MAJORS=%q: %v", list, err)
			}
			majors = append(majors, m)
		}
		return majors
	}
}

// Each runs f as a subtest on every major version that Majors returns.
func Each(t *testing.T, f func(t *testing.T, major int)) {
	t.Helper()
	for _, major := range Majors(t) {
		t.Run("pg"+strconv.Itoa(major), func(t *testing.T) { f(t, major) })
	}
}

// EachLong is Each for tests that take long: unless major versions are asked
// for by name, as the matrix does, it runs on the first one only.
func EachLong(t *testing.T, f func(t *testing.T, major int)) {
	t.Helper()
	if os.Getenv("TIDEMARK_PG_MAJORS") == "" {
		major := Majors(t)[0]
		t.Run("pg"+strconv.Itoa(major), func(t *testing.T) { f(t, major) })
		return
	}
	Each(t, f)
}

// installed returns the supported major versions found on this machine, ascending.
var installed = sync.OnceValue(func() []int {
	var majors []int
	for _, i := range postgres.Installations() {
		if postgres.Supported(i.Major) && i.Has("initdb") && (len(majors) == 0 || majors[len(majors)-1] != i.Major) {
			majors = append(majors, i.Major)
		}
	}
	return majors
})

// Tool returns the path of a client program (pgbench, pg_amcheck, ...), of the
// given major version where it is there, else of any; the test fails where it
// is nowhere.
func Tool(t testing.TB, major int, program string) string {
	t.Helper()
	for _, i := range postgres.Installations() {
		if i.Major == major && i.Has(program) {
			return i.Path(program)
		}
	}
	var best string
	for _, i := range postgres.Installations() {
		if i.Has(program) {
			best = i.Path(program)
		}
	}
	if best == "" {
		t.Fatalf("%s is not installed; it comes with the packages of PostgreSQL %d", program, major)
	}
	return best
}

func installation(t testing.TB, major int) postgres.Installation {
	t.Helper()
	bin, err := postgres.Find(major, "")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}
