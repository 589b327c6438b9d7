package main

import (
	"errors"
	"strings"
	"sync"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
)

// becomeOwner is becomeRepoOwner for several repositories: of the first that
// is a directory here.
func becomeOwner(locations []string) error {
	for _, l := range locations {
		if !strings.Contains(l, "://") || strings.HasPrefix(l, "file://") {
			return becomeRepoOwner(l)
		}
	}
	return nil
}

// inEach runs do for each repository at the same time and waits for all of
// them. What fails in one does not keep the others from getting their copy;
// the error then names each that failed.
func inEach[T any](locations []string, do func(location string) (T, error)) ([]T, error) {
	results, errs := make([]T, len(locations)), make([]error, len(locations))
	var wg sync.WaitGroup
	for i, l := range locations {
		wg.Go(func() { results[i], errs[i] = do(l) })
	}
	wg.Wait()
	return succeeded(results, errs), inSome(locations, errs)
}

func succeeded[T any](results []T, errs []error) []T {
	var out []T
	for i, err := range errs {
		if err == nil {
			out = append(out, results[i])
		}
	}
	return out
}

// inSome joins the errors of several repositories: the code is the first
// one's, and each is said with its repository and its hint.
func inSome(locations []string, errs []error) error {
	joined := errors.Join(errs...)
	if joined == nil || len(locations) == 1 {
		return joined
	}
	var hints []string
	var first error
	failed := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		failed++
		if first == nil {
			first = err
		}
		errs[i] = exit.Wrap(err, exit.CodeOf(err), "", "%s", locations[i])
		if h := exit.HintOf(err); h != "" {
			hints = append(hints, h)
		}
	}
	return exit.Wrap(errors.Join(errs...), exit.CodeOf(first), strings.Join(hints, "\n"),
		"%s of %d did not get it", cli.Plural(int64(failed), "repository", "repositories"), len(locations))
}
