package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"

	"tidemark/internal/rewind"
)

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
	res, err := rewind.Run(context.Background(), rewind.Options{Target: flags.Arg(1), SourceConn: flags.Arg(2), NoUndo: *noUndo, WriteRecoveryConf: true})
	pprof.StopCPUProfile()
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = fmt.Printf(`{"diverged": %t, "bytes": %d}`, res.Diverged, res.Bytes)
	return err
}
