package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"tidemark/internal/exit"
)

// Majors lists the major versions that this toolkit works with, ascending.
var Majors = []int{13, 14, 15, 16, 17, 18}

// Installation is one place where the server's binaries of one version lie.
type Installation struct {
	Major   int    `json:"major"`
	Version string `json:"version"` // as `postgres --version` gives it: "15.13 (Debian 15.13-0+deb12u1)"
	BinDir  string `json:"bindir"`
}

// Path returns the path of one of the installation's programs.
func (i Installation) Path(program string) string { return filepath.Join(i.BinDir, program) }

// Has reports whether a program is part of the installation. Small packages of
// the server come without psql, pgbench and the like.
func (i Installation) Has(program string) bool {
	st, err := os.Stat(i.Path(program))
	return err == nil && !st.IsDir() && st.Mode()&0o111 != 0
}

func (i Installation) String() string { return i.Version + " in " + i.BinDir }

// ParseVersion reads the output of `postgres --version` and returns the major
// version and the whole version text.
func ParseVersion(out string) (major int, version string, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(out), "postgres (PostgreSQL) ")
	if !ok {
		return 0, "", fmt.Errorf("not the version line of a PostgreSQL server: %q", out)
	}
	digits := text
	if n := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }); n >= 0 {
		digits = text[:n]
	}
	major, err = strconv.Atoi(digits)
	if err != nil {
		return 0, "", fmt.Errorf("no major version in %q", out)
	}
	return major, text, nil
}

// Probe asks the postgres binary in bindir which version it is.
func Probe(bindir string) (Installation, error) {
	path := filepath.Join(bindir, "postgres")
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return Installation{}, fmt.Errorf("running %s --version: %w", path, err)
	}
	major, version, err := ParseVersion(string(out))
	if err != nil {
		return Installation{}, err
	}
	return Installation{Major: major, Version: version, BinDir: bindir}, nil
}

// CacheDir is where scripts/postgres.sh unpacks further major versions:
// $TIDEMARK_PG_CACHE, else /var/cache/tidemark/postgres where that exists, else
// the user's cache directory.
func CacheDir() string {
	if dir := os.Getenv("TIDEMARK_PG_CACHE"); dir != "" {
		return dir
	}
	const system = "/var/cache/tidemark/postgres"
	if st, err := os.Stat(system); err == nil && st.IsDir() {
		return system
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return system
	}
	return filepath.Join(dir, "tidemark", "postgres")
}

// candidates returns the directories in which binaries of a major version may
// lie, best first. major 0 means any version.
func candidates(major int) []string {
	var dirs []string
	add := func(pattern string) {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return
		}
		sort.Sort(sort.Reverse(sort.StringSlice(found)))
		dirs = append(dirs, found...)
	}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		path, err := exec.LookPath(program)
		if err != nil {
			continue
		}
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	v := "*"
	if major != 0 {
		v = strconv.Itoa(major)
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/" + v + "/bin",          // Debian, Ubuntu
		"/usr/pgsql-" + v + "/bin",                   // the PGDG's RPMs
		"/usr/libexec/postgresql" + v,                // Alpine
		"/opt/homebrew/opt/postgresql@" + v + "/bin", // Homebrew on Apple silicon
		"/usr/local/opt/postgresql@" + v + "/bin",    // Homebrew on Intel
		"/home/linuxbrew/.linuxbrew/opt/postgresql@" + v + "/bin",
		filepath.Join(CacheDir(), v, "bin"),
		"/usr/local/pgsql/bin", // built from source
		"/usr/bin",             // a distribution's only version
	} {
		add(pattern)
	}
	return dirs
}

// Installations returns every installation found, ordered by major version; of
// several with the same major version the preferred one comes first.
func Installations() []Installation {
	var all []Installation
	seen := map[string]bool{}
	for _, dir := range candidates(0) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		if seen[dir] {
			continue
		}
		seen[dir] = true
		i := Installation{BinDir: dir}
		if !i.Has("postgres") {
			continue
		}
		if i, err := Probe(dir); err == nil {
			all = append(all, i)
		}
	}
	sort.SliceStable(all, func(a, b int) bool { return all[a].Major < all[b].Major })
	return all
}

// Find returns the installation in bindir, or where bindir is empty the best
// one of the major version; major 0 means the newest that is supported.
// An installation in bindir of another major version is refused.
func Find(major int, bindir string) (Installation, error) {
	if bindir != "" {
		i, err := Probe(bindir)
		if err != nil {
			return i, exit.Wrap(err, exit.Usage, "give the directory that holds the server's binaries (postgres, initdb)", "no PostgreSQL server in %s", bindir)
		}
		if major != 0 && i.Major != major {
			return i, exit.New(exit.Refused, fmt.Sprintf("give the directory of version %d's binaries", major),
				"the binaries in %s are of version %s, version %d is needed", bindir, i.Version, major)
		}
		return i, nil
	}
	if major != 0 {
		for _, dir := range candidates(major) {
			if !(Installation{BinDir: dir}).Has("postgres") {
				continue
			}
			if i, err := Probe(dir); err == nil && i.Major == major {
				return i, nil
			}
		}
		return Installation{}, exit.New(exit.Failed,
			fmt.Sprintf("install the server package of version %d, or say where it is with --bindir", major),
			"no PostgreSQL %d found on PATH or in the usual places", major)
	}
	all := Installations()
	for n := len(all) - 1; n >= 0; n-- {
		if Supported(all[n].Major) {
			return all[n], nil
		}
	}
	return Installation{}, exit.New(exit.Failed, "install PostgreSQL, or say where it is with --bindir",
		"no PostgreSQL found on PATH or in the usual places")
}

// Supported reports whether this toolkit works with a major version.
func Supported(major int) bool {
	return major >= Majors[0] && major <= Majors[len(Majors)-1]
}

// DataDirMajor reads the major version that a data directory belongs to.
func DataDirMajor(dir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0, exit.Wrap(err, exit.Refused, "give the directory that initdb or a seed made; it holds PG_VERSION and global/pg_control",
			"%s is not a PostgreSQL data directory", dir)
	}
	text := strings.TrimSpace(string(b))
	major, err := strconv.Atoi(text)
	if err != nil {
		return 0, exit.New(exit.Refused, "PostgreSQL 13 to 18 are supported", "%s has version %q, which is not supported", dir, text)
	}
	if !Supported(major) {
		return major, exit.New(exit.Refused, "PostgreSQL 13 to 18 are supported", "%s belongs to PostgreSQL %d, which is not supported", dir, major)
	}
	return major, nil
}

// ForDataDir returns the installation that fits a data directory.
func ForDataDir(dir, bindir string) (Installation, error) {
	major, err := DataDirMajor(dir)
	if err != nil {
		return Installation{}, err
	}
	return Find(major, bindir)
}

// InitOptions shape a new cluster.
type InitOptions struct {
	Superuser    string // default "postgres"
	Checksums    bool
	WALSegmentMB int      // 0 means the server's default
	Args         []string // further arguments for initdb
}

// InitDB makes a new cluster in dir.
func (i Installation) InitDB(ctx context.Context, dir string, o InitOptions) error {
	if o.Superuser == "" {
		o.Superuser = "postgres"
	}
	args := []string{"-D", dir, "-U", o.Superuser, "--auth=trust", "--encoding=UTF8", "--locale=C"}
	switch {
	case o.Checksums:
		args = append(args, "--data-checksums")
	case i.Major >= 18: // on by default from 18
		args = append(args, "--no-data-checksums")
	}
	if o.WALSegmentMB != 0 {
		args = append(args, "--wal-segsize="+strconv.Itoa(o.WALSegmentMB))
	}
	out, err := exec.CommandContext(ctx, i.Path("initdb"), append(args, o.Args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb in %s: %w\n%s", dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}
