// Command snapshot-metadata-lister prints which ranges of a volume snapshot hold data, or changed since an older one.
//
// It is written as a storage vendor's tool would be, from the published protocol alone: all that it gets is a kubeconfig
// and the names of snapshots. It asks the cluster for the CSI driver's SnapshotMetadataService, mints a token for that
// service's audience, and streams the ranges from it. It knows nothing of what serves the cluster or the ranges.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// apiTimeout bounds each request to the API server. Streams of metadata have no deadline: a driver may take one for the
// end of its scan and report success with half of the ranges.
const apiTimeout = 30 * time.Second

// request is what the user asks for.
type request struct {
	kubeconfig string
	namespace  string
	snapshot   string
	base       string // a VolumeSnapshot of the same namespace
	baseID     string // the storage system's own id of the base, whose objects may be gone
	account    serviceAccount
	expiry     int64
	offset     int64
	maxResults int
	format     string
}

func parse(arguments []string) (request, error) {
	var r request
	flags := flag.NewFlagSet("snapshot-metadata-lister", flag.ContinueOnError)
	flags.StringVar(&r.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "the cluster's kubeconfig; default $KUBECONFIG, then the Pod's own account")
	flags.StringVar(&r.namespace, "n", "default", "`namespace` of the snapshots")
	flags.StringVar(&r.snapshot, "s", "", "`name` of the VolumeSnapshot whose ranges are wanted")
	flags.StringVar(&r.base, "p", "", "`name` of an older VolumeSnapshot: list what changed since")
	flags.StringVar(&r.baseID, "P", "", "`id` (snapshotHandle) of an older snapshot, instead of -p; its objects need not exist")
	flags.StringVar(&r.account.name, "service-account", "", "ServiceAccount to mint the token for; default the kubeconfig's own")
	flags.StringVar(&r.account.namespace, "service-account-namespace", "", "its namespace; default the snapshots'")
	flags.Int64Var(&r.expiry, "token-expiry", 600, "lifetime of the token in `seconds`, 600 or more")
	flags.Int64Var(&r.offset, "starting-offset", 0, "list ranges that end beyond this `byte`")
	flags.IntVar(&r.maxResults, "max-results", 0, "at most so many ranges in one message of the stream; 0 leaves it to the server")
	flags.StringVar(&r.format, "o", "table", "output: `table or json`")
	if err := flags.Parse(arguments); err != nil {
		return r, err
	}
	return r, r.check(flags.Args())
}

func (r request) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("no such argument: %q", rest[0])
	case r.snapshot == "":
		return errors.New("-s is missing: which VolumeSnapshot?")
	case r.base != "" && r.baseID != "":
		return errors.New("-p and -P exclude each other")
	case r.account.name == "" && r.account.namespace != "":
		return errors.New("-service-account-namespace needs -service-account")
	case r.expiry < 600:
		return errors.New("-token-expiry: Kubernetes mints no token for less than 600 seconds")
	case r.offset < 0:
		return errors.New("-starting-offset is negative")
	case r.maxResults < 0 || r.maxResults > 190_000: // 22 bytes a range at most, in messages of 4 MiB at most
		return errors.New("-max-results must be within 0 and 190000")
	case r.format != "table" && r.format != "json":
		return fmt.Errorf("-o: no such format: %q", r.format)
	}
	return nil
}

func main() {
	r, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, r request) error {
	config, err := clientcmd.BuildConfigFromFlags("", r.kubeconfig)
	if err != nil {
		return err
	}
	config.Timeout = apiTimeout
	cluster, err := connect(config)
	if err != nil {
		return err
	}
	target, err := cluster.snapshot(ctx, r.namespace, r.snapshot)
	if err != nil {
		return err
	}
	if r.base != "" {
		base, err := cluster.snapshot(ctx, r.namespace, r.base)
		if err != nil {
			return err
		}
		if base.driver != target.driver {
			return fmt.Errorf("%s is of driver %s, %s of %s", r.base, base.driver, r.snapshot, target.driver)
		}
		r.baseID = base.handle
	}
	service, err := cluster.service(ctx, target.driver)
	if err != nil {
		return err
	}
	token, err := cluster.token(ctx, service.audience, r)
	if err != nil {
		return err
	}
	return list(ctx, service, token, r, newPrinter(os.Stdout, r.format))
}
