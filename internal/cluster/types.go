package cluster

import "context"

// A Rewinder takes back what a node alone has, so that it can follow the
// source, which is reached by sourceConninfo. The target is stopped. A role
// change is given one by its caller: this package knows nothing of how it is done.
type Rewinder func(ctx context.Context, target, source Node, sourceConninfo string) error

// A Seeder copies the source into the target's data directory, which is empty
// or missing, or holds what an earlier call left unfinished.
type Seeder func(ctx context.Context, target, source Node, sourceConninfo string) error
