package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// A lab is a scratch cluster below one directory:
//
//	DIR/tidemark.toml   the configuration, for --config or TIDEMARK_CONFIG
//	DIR/lab.json        what was made, so that `lab down` removes only that
//	DIR/alpha ...       the data directories
//	DIR/alpha.log ...   the servers' logs
//	DIR/run             their sockets
//	DIR/repo            the repository that WAL is archived into
//
// The standbys are made by copying the new cluster before it is first started:
// there is nothing in it yet that a base backup would have to save.

// DefaultLabNodes is how many nodes a lab has.
const DefaultLabNodes = 3

// labNames are the nodes' names in their order.
var labNames = []string{"alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"}

// labFile records what a lab consists of.
const labFile = "lab.json"

// LabOptions shape a lab.
type LabOptions struct {
	Dir      string
	Nodes    int                         // default DefaultLabNodes
	Major    int                         // of the server; 0 means the newest that is installed
	Bindir   string                      // of the server's programs
	Archive  string                      // archive_command; empty: WAL is not archived
	Restore  string                      // restore_command
	Repo     string                      // the repository that the two speak of
	InitRepo func(context.Context) error // makes the repository; nil where there is none
	Progress progress.Reporter
}

// Lab is what was made.
type Lab struct {
	Dir    string    `json:"directory"`
	Config string    `json:"config"`
	Major  int       `json:"major"`
	Bindir string    `json:"bindir"`
	Repo   string    `json:"repository,omitempty"`
	Made   []string  `json:"made"` // names below Dir
	Nodes  []LabNode `json:"nodes"`
}

// LabNode is one server of a lab.
type LabNode struct {
	Name     string `json:"name"`
	DataDir  string `json:"data_directory"`
	Port     int    `json:"port"`
	Conninfo string `json:"conninfo"`
}

// maxSocketDir leaves room for the name of the socket in a socket's address.
const maxSocketDir = 107 - len("/.s.PGSQL.65535")

// LabUp makes a lab and starts it. Whatever goes wrong, nothing stays behind.
func LabUp(ctx context.Context, o LabOptions) (lab *Lab, err error) {
	setDefault(&o.Nodes, DefaultLabNodes)
	o.Progress = progress.Or(o.Progress)
	if o.Nodes < 1 || o.Nodes > len(labNames) {
		return nil, exit.New(exit.Usage, "three are enough to rehearse a failover", "a lab has 1 to %d nodes, not %d", len(labNames), o.Nodes)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if len(filepath.Join(o.Dir, "run")) > maxSocketDir {
		return nil, exit.New(exit.Usage, "choose a shorter one, such as /tmp/lab", "the directory's name is too long for a socket's address: %s", o.Dir)
	}
	if err := emptyDirectory(o.Dir); err != nil {
		return nil, err
	}
	bin, err := postgres.Find(o.Major, o.Bindir)
	if err != nil {
		return nil, err
	}
	lab = &Lab{Dir: o.Dir, Config: filepath.Join(o.Dir, "tidemark.toml"), Major: bin.Major, Bindir: bin.BinDir, Repo: o.Repo}
	if err := lab.plan(o.Nodes); err != nil {
		return nil, err
	}
	if err := lab.build(ctx, o, bin); err != nil {
		return nil, errors.Join(err, LabDown(context.WithoutCancel(ctx), o.Dir, o.Progress))
	}
	return lab, nil
}

// emptyDirectory makes the directory where it is missing, and refuses one
// that holds something.
func emptyDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.MkdirAll(dir, 0o755)
	case err != nil:
		return err
	case len(entries) > 0:
		hint := "give a new directory"
		if fileExists(dir, labFile) {
			hint = "a lab is there already: dbctl lab down " + dir
		}
		return exit.New(exit.Refused, hint, "%s is not empty", dir)
	}
	return nil
}

// plan gives every node its name, directory and port, and writes lab.json
// before anything else, so that `lab down` can clean up after a crash.
func (l *Lab) plan(nodes int) error {
	l.Made = []string{labFile, "tidemark.toml", "run"}
	if l.Repo != "" {
		l.Made = append(l.Made, "repo")
	}
	ports, err := freePorts(nodes)
	if err != nil {
		return err
	}
	for i, port := range ports {
		name := labNames[i]
		l.Nodes = append(l.Nodes, LabNode{Name: name, DataDir: filepath.Join(l.Dir, name), Port: port,
			Conninfo: fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", postgres.QuoteValue(l.sockets()), port)})
		l.Made = append(l.Made, name, name+".log")
	}
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return volume.WriteFile(volume.OS, filepath.Join(l.Dir, labFile), append(data, '\n'), 0o644)
}

func (l *Lab) sockets() string { return filepath.Join(l.Dir, "run") }

// freePorts asks the kernel for ports that nobody listens on. They name the
// sockets only: a lab does not listen on the network.
func freePorts(n int) ([]int, error) {
	var ports []int
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		held = append(held, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func (l *Lab) build(ctx context.Context, o LabOptions, bin postgres.Installation) error {
	if err := os.MkdirAll(l.sockets(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(l.Config, []byte(l.toml()), 0o644); err != nil {
		return err
	}
	if o.InitRepo != nil {
		if err := o.InitRepo(ctx); err != nil {
			return err
		}
	}
	first := l.Nodes[0]
	o.Progress.Phase("making "+first.Name, 0, 0)
	if err := bin.InitDB(ctx, first.DataDir, postgres.InitOptions{Checksums: true, Args: []string{"--no-sync"}}); err != nil {
		return err
	}
	for _, n := range l.Nodes[1:] {
		o.Progress.Phase("making "+n.Name, 0, 0)
		if err := copyDirectory(first.DataDir, n.DataDir); err != nil {
			return err
		}
	}
	for i, n := range l.Nodes {
		if err := l.configure(n, i > 0, o); err != nil {
			return err
		}
	}
	for i, n := range l.Nodes {
		o.Progress.Phase("starting "+n.Name, 0, 0)
		s := &postgres.Server{DataDir: n.DataDir, Bin: bin, LogFile: filepath.Join(l.Dir, n.Name+".log"), StartTimeout: DefaultFollowTimeout}
		if err := s.Start(ctx); err != nil {
			return err
		}
		if i == 0 {
			if err := l.makeSlots(ctx); err != nil {
				return err
			}
		}
	}
	return l.proveStreaming(ctx)
}

func (l *Lab) toml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# A scratch cluster made by `dbctl lab up`; `dbctl lab down %s` removes it.\nbindir = %q\n\n[cluster]\nname = \"lab\"\n", l.Dir, l.Bindir)
	if l.Repo != "" {
		fmt.Fprintf(&b, "\n[repository]\npath = %q\n", l.Repo)
	}
	for _, n := range l.Nodes {
		fmt.Fprintf(&b, "\n[[node]]\nname = %q\nconninfo = %q\npgdata = %q\n", n.Name, n.Conninfo, n.DataDir)
	}
	return b.String()
}

// configure writes a node's postgresql.conf additions, small enough for a
// laptop, and makes the later nodes standbys of the first.
func (l *Lab) configure(n LabNode, standby bool, o LabOptions) error {
	lines := []string{"", "# dbctl lab",
		fmt.Sprintf("port = %d", n.Port), "listen_addresses = ''", "unix_socket_directories = " + postgres.QuoteGUC(l.sockets()),
		"cluster_name = " + postgres.QuoteGUC(n.Name), "shared_buffers = 32MB", "wal_keep_size = 128MB",
		"wal_retrieve_retry_interval = 1s", "log_line_prefix = '%m [%p] '"}
	if o.Archive != "" {
		lines = append(lines, "archive_mode = on", "archive_command = "+postgres.QuoteGUC(o.Archive), "restore_command = "+postgres.QuoteGUC(o.Restore))
	}
	f, err := os.OpenFile(filepath.Join(n.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if err := errors.Join(err, f.Close()); err != nil || !standby {
		return err
	}
	if err := writeStandbySignal(volume.OS, n.DataDir); err != nil {
		return err
	}
	info := l.Nodes[0].Conninfo + " application_name=" + n.Name
	return postgres.EditAutoConf(volume.OS, n.DataDir, postgres.StandbySettings(info, SlotName(n.Name)))
}

func (l *Lab) makeSlots(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, l.Nodes[0].Conninfo)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	for _, n := range l.Nodes[1:] {
		if _, err := ensureSlot(ctx, conn, SlotName(n.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) proveStreaming(ctx context.Context) error {
	var nodes []Node
	for _, n := range l.Nodes {
		nodes = append(nodes, Node{Name: n.Name, Conninfo: n.Conninfo, DataDir: n.DataDir, Bindir: l.Bindir})
	}
	c, err := New(Options{Nodes: nodes})
	if err != nil {
		return err
	}
	for _, n := range nodes[1:] {
		if err := c.verify(ctx, nodes[0], n, SlotName(n.Name)); err != nil {
			return err
		}
	}
	return nil
}

// copyDirectory copies a data directory that no server has been started on.
func copyDirectory(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o600)
	})
}

// ReadLab reads what `lab up` noted in a directory.
func ReadLab(dir string) (*Lab, error) {
	data, err := os.ReadFile(filepath.Join(dir, labFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.New(exit.Refused, "give the directory that was given to dbctl lab up", "%s holds no lab", dir)
	}
	if err != nil {
		return nil, err
	}
	var l Lab
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, exit.Wrap(err, exit.Refused, "it is written by dbctl lab up", "%s is damaged", filepath.Join(dir, labFile))
	}
	return &l, nil
}

// LabDown stops the servers of a lab, each by its process, and removes what
// LabUp made. Other files in the directory stay, and then the directory too,
// which a note says.
func LabDown(ctx context.Context, dir string, p progress.Reporter) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	l, err := ReadLab(dir)
	if err != nil {
		return err
	}
	for _, n := range l.Nodes {
		progress.Or(p).Phase("stopping "+n.Name, 0, 0)
		s := &postgres.Server{DataDir: filepath.Join(dir, n.Name)}
		// Nothing of a lab is kept: there is no need for a shutdown checkpoint.
		if err := stopAtOnce(ctx, s, 30*time.Second); err != nil {
			return err
		}
	}
	for i := len(l.Made) - 1; i >= 0; i-- { // lab.json is the first, and goes last
		if !filepath.IsLocal(l.Made[i]) {
			return exit.New(exit.Refused, "", "%s names %q, which is not below the directory", filepath.Join(dir, labFile), l.Made[i])
		}
		if err := volume.RemoveAll(volume.OS, filepath.Join(dir, l.Made[i])); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		progress.Or(p).Note("the directory stays, for it holds other files: %v", err)
	}
	return nil
}
