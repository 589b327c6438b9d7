package main

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
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
	return succeeded(results, errs), inSome(locations, errs, "did not get it")
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

// inTurn runs do for each repository, one after another, and prints what came of
// it: with --json as it is where there is one repository, and the documents of
// all in the member "repositories" where there are several. A backup or key that
// is named need not be in all of them.
func inTurn[T any](e *cli.Env, locations []string, do func(location string) (*T, error), text func(*cli.Text, *T)) error {
	if err := needRepos(locations); err != nil {
		return err
	}
	docs, errs := []*T{}, make([]error, len(locations))
	for i, l := range locations {
		doc, err := do(l)
		if doc != nil {
			docs = append(docs, doc)
		}
		errs[i] = err
	}
	if len(docs) == 0 {
		return inSome(locations, errs, "failed")
	}
	for i, err := range errs {
		if errors.Is(err, repo.ErrNoBackup) || errors.Is(err, repo.ErrNoRecipient) || errors.Is(err, repo.ErrNotEncrypted) {
			e.Note("%v", err)
			errs[i] = nil
		}
	}
	var document any = docs[0]
	if len(locations) > 1 {
		document = &inSeveral[T]{docs}
	}
	return errors.Join(e.Render(document, func(t *cli.Text) {
		for i, d := range docs {
			if i > 0 {
				t.Blank()
			}
			text(t, d)
		}
	}), inSome(locations, errs, "failed"))
}

// inSeveral is what a verb prints that works on several repositories.
type inSeveral[T any] struct {
	Repositories []*T `json:"repositories"`
}

// oneOnly refuses several repositories, for what cannot be taken back.
func oneOnly(locations []string, what string) (string, error) {
	if err := needRepos(locations); err != nil {
		return "", err
	}
	if len(locations) > 1 {
		return "", exit.New(exit.Usage, "say --repo "+locations[0]+", for instance", "%s: which of the %d repositories?", what, len(locations))
	}
	return locations[0], nil
}

// inSome joins the errors of several repositories: the code is the first
// one's, and each is said with its repository and its hint. what says what
// became of those.
func inSome(locations []string, errs []error, what string) error {
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
		if h := exit.HintOf(err); h != "" && !slices.Contains(hints, h) {
			hints = append(hints, h)
		}
	}
	return exit.Wrap(errors.Join(errs...), exit.CodeOf(first), strings.Join(hints, "\n"),
		"%s of %d %s", cli.Plural(int64(failed), "repository", "repositories"), len(locations), what)
}
