package rewind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// openSearch finds out which places may be searched for WAL: the
// restore_command of either side, where that was asked for, and a repository.
func (j *job) openSearch(ctx context.Context) error {
	var places []place
	if j.RestoreTargetWAL {
		commands, err := j.restoreCommands(ctx)
		if err != nil {
			return err
		}
		if len(commands) == 0 && len(j.Repositories) == 0 && j.SourceRepo == "" {
			return exit.New(exit.Usage, "set it in the target's configuration, name a repository with --repo, or leave out -c",
				"restore_command is not set in the target cluster, nor at the source")
		}
		places = commands
	}
	for _, location := range append([]string{j.SourceRepo}, j.Repositories...) {
		if location != "" && !slices.ContainsFunc(places, func(p place) bool { r, ok := p.(*repoPlace); return ok && r.location == location }) {
			places = append(places, &repoPlace{location: location, systemID: j.tc.SystemIdentifier})
		}
	}
	j.search = newSearch(ctx, j.tc.SystemIdentifier, j.Log, j.warn, places...)
	return nil
}

// restoreCommands are those of the target and of the source. The source's may
// be meant for another host: it is used where it works.
func (j *job) restoreCommands(ctx context.Context) ([]place, error) {
	server, err := j.server()
	if err != nil {
		return nil, err
	}
	mine, err := server.Setting(ctx, "restore_command")
	if err != nil {
		return nil, err
	}
	var places []place
	if mine != "" {
		places = append(places, &commandPlace{side: "target", command: mine, dir: j.Target})
	}
	theirs, dir, err := j.source.restoreCommand(ctx, j.Bindir)
	if err != nil {
		j.Log.Info("the source's restore_command cannot be read", "error", err)
	}
	if theirs != "" && theirs != mine {
		if dir == "" {
			dir = j.Target
		}
		places = append(places, &commandPlace{side: "source", command: theirs, dir: dir, elsewhere: j.source.live()})
	}
	return places, nil
}

// restoreCommand is the source's setting, and the directory to run it in where
// that is here.
func (s *source) restoreCommand(ctx context.Context, bindir string) (command, dir string, err error) {
	switch {
	case s.dir != "":
		server, err := postgres.NewServer(s.dir, bindir)
		if err != nil {
			return "", "", err
		}
		command, err = server.Setting(ctx, "restore_command")
		return command, s.dir, err
	case s.live():
		conn, err := postgres.Connect(ctx, s.conn)
		if err != nil {
			return "", "", err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		err = postgres.Query(ctx, conn, "SELECT coalesce(current_setting('restore_command', true), '')", nil, &command)
		return command, "", err
	}
	return "", "", nil
}

// commandPlace is what a restore_command reaches.
type commandPlace struct {
	side      string // "target" or "source"
	command   string
	dir       string // in which it runs: the data directory, as when the server runs it
	elsewhere bool   // it was written for another host
}

func (c *commandPlace) String() string { return "the " + c.side + "'s restore_command" }

// notRunnable are the statuses by which a shell says that it cannot run a command.
const notRunnable, notFound = 126, 127

// fetch runs the command by the server's rule: a status of 1 to 125 says that
// there is no such file, anything else is a fault.
func (c *commandPlace) fetch(ctx context.Context, name, path string) error {
	oldest := wal.SegmentName(1, 0, wal.DefaultSegmentSize) // %r: nothing may be removed
	line := strings.NewReplacer("%%", "%", "%p", path, "%f", name, "%r", oldest).Replace(c.command)
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir = c.dir
	// What the shell started must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var status *exec.ExitError
	if !errors.As(err, &status) {
		return err
	}
	what := status.String()
	if text := strings.TrimSpace(string(out)); text != "" {
		what += ": " + text[strings.LastIndexByte(text, '\n')+1:]
	}
	switch code := status.ExitCode(); {
	case code > 0 && code <= 125:
		return &absent{why: what}
	case c.elsewhere && (code == notRunnable || code == notFound):
		return &absent{why: "it does not run on this host: " + what, sure: true}
	}
	return errors.New(what)
}

// repoPlace is the WAL archive of a repository, opened when it is needed.
type repoPlace struct {
	location string
	systemID uint64
	mu       sync.Mutex
	cluster  *repo.Cluster
}

func (r *repoPlace) String() string { return "the repository " + r.location }

func (r *repoPlace) open(ctx context.Context) (*repo.Cluster, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cluster == nil {
		c, err := openRepository(ctx, r.location, r.systemID)
		if err != nil {
			return nil, err
		}
		r.cluster = c
	}
	return r.cluster, nil
}

// openRepository opens a repository's part of one cluster. A repository that
// has never heard of the cluster is the wrong one.
func openRepository(ctx context.Context, location string, systemID uint64) (*repo.Cluster, error) {
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	ids, err := r.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(ids, systemID) {
		return nil, exit.New(exit.Refused, "name the repository that the cluster is backed up to",
			"the repository %s holds nothing of the target's cluster, whose system identifier is %d", location, systemID)
	}
	return r.Cluster(systemID), nil
}

func (r *repoPlace) has(ctx context.Context, name string) (bool, error) {
	c, err := r.open(ctx)
	if err != nil {
		return false, err
	}
	return c.HasWAL(ctx, name)
}

func (r *repoPlace) fetch(ctx context.Context, name, path string) error {
	c, err := r.open(ctx)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = c.FetchWAL(ctx, name, f)
	err = errors.Join(err, f.Close())
	if errors.Is(err, repo.ErrNotArchived) {
		return &absent{sure: true}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
