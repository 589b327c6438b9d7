package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/pelletier/go-toml/v2"

	"tidemark/internal/exit"
)

// Config is tidemark.toml: the cluster, its nodes, the repository. All of it
// is optional; flags and the environment come before it.
//
//	bindir = "/usr/lib/postgresql/15/bin"   # the server's programs; found by itself otherwise
//	jobs = 4                                # parallel workers
//
//	[cluster]
//	name = "shop"
//
//	[[node]]
//	name = "alpha"
//	conninfo = "host=/run/postgresql port=5432 dbname=postgres"
//	pgdata = "/srv/alpha"
//	host = ""                               # how to reach the machine; empty: this one
//
//	[repository]
//	path = "/srv/backup"                    # or paths = [...], where there are several
//	rehash_every = 7                        # days after which a backup reads every block
//	identity = "/etc/tidemark/key.txt"      # where an encrypted one is read
//
//	[retention]                             # for dbbackup expire
//	keep_last = 3
//	keep_within = "14d"
//	keep_daily = 14
//	keep_weekly = 8
//	keep_monthly = 12
//	keep_yearly = 7
//	keep_wal = "30d"                        # how far back any moment is recoverable
//
//	[hooks]
//	before_promote = "/usr/local/bin/fence"
//	after_promote = "/usr/local/bin/move-address"
type Config struct {
	Path       string           `toml:"-" json:"path"`
	Bindir     string           `toml:"bindir" json:"bindir,omitempty"`
	Jobs       int              `toml:"jobs" json:"jobs,omitempty"`
	Cluster    ClusterConfig    `toml:"cluster" json:"cluster"`
	Nodes      []NodeConfig     `toml:"node" json:"nodes"`
	Repository RepositoryConfig `toml:"repository" json:"repository"`
	Retention  RetentionConfig  `toml:"retention" json:"retention"`
	Hooks      HooksConfig      `toml:"hooks" json:"hooks"`
}

// ClusterConfig is the section [cluster].
type ClusterConfig struct {
	Name string `toml:"name" json:"name,omitempty"`
}

// NodeConfig is one [[node]].
type NodeConfig struct {
	Name     string `toml:"name" json:"name"`
	Conninfo string `toml:"conninfo" json:"conninfo"`
	PGData   string `toml:"pgdata" json:"pgdata,omitempty"`
	Host     string `toml:"host" json:"host,omitempty"`
	Bindir   string `toml:"bindir" json:"bindir,omitempty"`
}

// RepositoryConfig is the section [repository]. Once it is read, Path is the
// first of Paths, whichever of the two the file has.
type RepositoryConfig struct {
	Path        string   `toml:"path" json:"path,omitempty"`
	Paths       []string `toml:"paths" json:"paths,omitempty"`
	Identity    string   `toml:"identity" json:"identity,omitempty"`
	RehashEvery int      `toml:"rehash_every" json:"rehash_every,omitempty"` // days
}

// RetentionConfig is the section [retention].
type RetentionConfig struct {
	KeepLast    int    `toml:"keep_last" json:"keep_last,omitempty"`
	KeepWithin  string `toml:"keep_within" json:"keep_within,omitempty"`
	KeepDaily   int    `toml:"keep_daily" json:"keep_daily,omitempty"`
	KeepWeekly  int    `toml:"keep_weekly" json:"keep_weekly,omitempty"`
	KeepMonthly int    `toml:"keep_monthly" json:"keep_monthly,omitempty"`
	KeepYearly  int    `toml:"keep_yearly" json:"keep_yearly,omitempty"`
	KeepWAL     string `toml:"keep_wal" json:"keep_wal,omitempty"`
}

// HooksConfig is the section [hooks].
type HooksConfig struct {
	BeforePromote string `toml:"before_promote" json:"before_promote,omitempty"`
	AfterPromote  string `toml:"after_promote" json:"after_promote,omitempty"`
}

// Node returns the node of that name.
func (c *Config) Node(name string) (NodeConfig, error) {
	var names []string
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		return NodeConfig{}, exit.New(exit.Usage, "name the nodes in tidemark.toml ([[node]] name, conninfo, pgdata), or say --config FILE",
			"there is no node %q: no configuration file was found", name)
	}
	return NodeConfig{}, exit.New(exit.Usage, "the nodes are: "+strings.Join(names, ", "), "there is no node %q in %s", name, c.Path)
}

// LoadConfig reads and checks a configuration file.
func LoadConfig(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, exit.Wrap(err, exit.Usage, "", "cannot read the configuration")
	}
	c := &Config{}
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return nil, configError(path, err)
	}
	if c.Path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	return c, c.validate()
}

func (c *Config) validate() error {
	switch r := &c.Repository; {
	case r.Path != "" && len(r.Paths) > 0:
		return exit.New(exit.Usage, "put all of them into paths", "%s: [repository] has path and paths", c.Path)
	case slices.Contains(r.Paths, ""):
		return exit.New(exit.Usage, "", "%s: [repository] paths holds an empty name", c.Path)
	case len(r.Paths) > 0:
		r.Path = r.Paths[0]
	case r.Path != "":
		r.Paths = []string{r.Path}
	}
	seen := map[string]bool{}
	for i, n := range c.Nodes {
		switch {
		case n.Name == "":
			return exit.New(exit.Usage, "", "%s: node %d has no name", c.Path, i+1)
		case seen[n.Name]:
			return exit.New(exit.Usage, "", "%s: two nodes are named %q", c.Path, n.Name)
		case n.Conninfo == "":
			return exit.New(exit.Usage, `such as conninfo = "host=db1 port=5432 dbname=postgres"`, "%s: node %q has no conninfo", c.Path, n.Name)
		}
		seen[n.Name] = true
	}
	return nil
}

// configError names the line and, for an unknown key, the nearest known one.
func configError(path string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		first := strict.Errors[0]
		row, _ := first.Position()
		key := strings.Join(first.Key(), ".")
		return exit.New(exit.Usage, nearestHint(key, knownKeys(reflect.TypeFor[Config](), "")), "%s, line %d: unknown key %q", path, row, key)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return exit.New(exit.Usage, "", "%s, line %d, column %d: %s", path, row, col, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return exit.Wrap(err, exit.Usage, "", "%s", path)
}

// knownKeys lists the dotted keys of a configuration type.
func knownKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		key := f.Tag.Get("toml")
		if key == "-" {
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			keys = append(keys, knownKeys(ft, prefix+key+".")...)
			continue
		}
		keys = append(keys, prefix+key)
	}
	sort.Strings(keys)
	return keys
}

func nearestHint(key string, known []string) string {
	best, dist := "", len(key)
	for _, k := range known {
		if d := distance(key, k); d < dist {
			best, dist = k, d
		}
	}
	if best == "" || dist > max(3, len(key)/2) {
		return "known keys: " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the edit distance of two strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(prev+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// resolver feeds the configuration file to the flags that carry a config tag.
type resolver struct {
	config *Config
	err    error
}

// newResolver finds and reads the file; an error waits for Validate, so that
// --help works with a broken file.
func newResolver(args []string) *resolver {
	path, given := scanFlag(args, "--config")
	if !given {
		path, given = os.LookupEnv("TIDEMARK_CONFIG")
	}
	candidates := []string{path}
	if !given || path == "" {
		candidates = []string{"tidemark.toml", "/etc/tidemark.toml"}
	}
	for _, p := range candidates {
		if _, err := os.Stat(p); err != nil && !given {
			continue
		}
		c, err := LoadConfig(p)
		if err != nil {
			return &resolver{config: &Config{}, err: err}
		}
		return &resolver{config: c}
	}
	return &resolver{config: &Config{}}
}

// Validate implements kong.Resolver.
func (r *resolver) Validate(*kong.Application) error { return r.err }

// Resolve implements kong.Resolver. kong would let a file beat the
// environment: nothing is said where the environment has spoken.
func (r *resolver) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	key := flag.Tag.Get("config")
	if key == "" {
		return nil, nil
	}
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return nil, nil
		}
	}
	v, err := lookup(reflect.ValueOf(*r.config), strings.Split(key, "."))
	if err != nil || v.IsZero() {
		return nil, err
	}
	return v.Interface(), nil
}

// lookup walks a dotted key through the configuration struct.
func lookup(v reflect.Value, path []string) (reflect.Value, error) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("toml") != path[0] {
			continue
		}
		if len(path) == 1 {
			return v.Field(i), nil
		}
		return lookup(v.Field(i), path[1:])
	}
	return reflect.Value{}, fmt.Errorf("no configuration key %q", strings.Join(path, "."))
}

var (
	keywordSecret = regexp.MustCompile(`(?i)\b((?:ssl)?password)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s&]+)`)
	uriSecret     = regexp.MustCompile(`(://[^:/@\s]*):[^@\s]*@`)
)

// Redact hides the passwords in a connection string or URI.
func Redact(conninfo string) string {
	return uriSecret.ReplaceAllString(keywordSecret.ReplaceAllString(conninfo, "$1=***"), "$1:***@")
}
