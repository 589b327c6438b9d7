package cli

import (
	"slices"
	"strings"
	"testing"
)

func TestExamples(t *testing.T) {
	long := "demo run --repo /srv/backup " + strings.Repeat("x", longExample)
	got := examples("demo run # runs\ndemo check --all     # checks\n" + long + "   # takes long\n\tdemo list")
	want := []string{
		"demo run          # runs",
		"demo check --all  # checks",
		"# takes long",
		long,
		"demo list",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}
