package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"sync"
	"time"

	"tidemark/internal/progress"
	"tidemark/internal/rewind"
)

// phases writes down when each phase of a run began.
type phases struct {
	progress.Nop
	begin time.Time
	mu    sync.Mutex
	text  bytes.Buffer
}

func (p *phases) Phase(name string, total int64, _ progress.Unit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(&p.text, "%8.3f s  %s (%d)\n", time.Since(p.begin).Seconds(), name, total)
}

// profiled is a rewind in this process, run as the servers' user by
// -cpuprofile: its arguments are the profile, the target and the source.
func profiled(args []string) error {
	flags := flag.NewFlagSet("profiled", flag.ContinueOnError)
	noUndo := flags.Bool("no-undo", false, "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 3 {
		return errors.Join(err, errors.New("want a profile, a target and a source"))
	}
	f, err := os.Create(flags.Arg(0))
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	phases := &phases{begin: time.Now()}
	res, err := rewind.Run(context.Background(), rewind.Options{Target: flags.Arg(1), SourceConn: flags.Arg(2), NoUndo: *noUndo, WriteRecoveryConf: true, Progress: phases})
	phases.Phase("done", 0, progress.Items)
	pprof.StopCPUProfile()
	err = errors.Join(err, os.WriteFile(flags.Arg(0)+".phases", phases.text.Bytes(), 0o644))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = fmt.Printf(`{"diverged": %t, "bytes": %d}`, res.Diverged, res.Bytes)
	return err
}
