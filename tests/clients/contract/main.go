// Command contract-client holds an API server to what client-go expects of one.
//
// It takes a kubeconfig and a namespace, runs each case and prints one JSON line for it: {"case": ..., "error": ...}.
// The same program runs against the sandbox's API server and a real kube-apiserver; it knows neither.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// world is what a case works with: clients of one server, and a namespace to itself.
type world struct {
	config    *rest.Config
	typed     kubernetes.Interface // speaks protobuf, as Kubernetes' own controllers do
	dynamic   dynamic.Interface    // speaks JSON
	namespace string
}

type testCase struct {
	name string
	run  func(context.Context, *world) error
}

var cases = []testCase{
	{"discovery", discoveryCase}, // before the others, whose kinds come and go
	{"typed-and-concurrent", typedCase},
	{"dynamic-custom-resource", dynamicCase},
	{"error-kinds", errorsCase},
	{"field-validation", validationCase},
	{"patches", patchesCase},
	{"server-side-apply", applyCase},
	{"status-subresource", statusCase},
	{"chunked-lists", pagerCase},
	{"metadata-only", metadataCase},
	{"informer-and-resync", informerCase},
	{"informer-relists-after-410", relistCase},
	{"watch-list", watchListCase},
	{"watch-bookmarks", bookmarksCase},
	{"retry-watcher", retryWatcherCase},
	{"leader-election", leaderCase},
	{"deletion-propagation", deletionCase},
	{"tokens-and-reviews", tokensCase},
	{"recorded-events", eventsCase},
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the cluster's kubeconfig")
	namespace := flag.String("namespace", "", "an empty namespace to work in")
	list := flag.Bool("list", false, "print the names of the cases and end")
	flag.Parse()
	if *list {
		for _, each := range cases {
			fmt.Println(each.name)
		}
		return
	}
	if err := run(*kubeconfig, *namespace, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig, namespace string, wanted []string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 500, 500
	w, err := newWorld(config, namespace)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	var output sync.Mutex
	for _, each := range cases {
		if len(wanted) > 0 && !contains(wanted, each.name) {
			continue
		}
		one := func() {
			ctx, stop := context.WithTimeout(context.Background(), 75*time.Second)
			defer stop()
			started := time.Now()
			result := map[string]any{"case": each.name, "error": ""}
			if err := each.run(ctx, w); err != nil {
				result["error"] = err.Error()
			}
			result["seconds"] = time.Since(started).Round(time.Millisecond).Seconds()
			output.Lock()
			defer output.Unlock()
			_ = json.NewEncoder(os.Stdout).Encode(result)
		}
		if each.name == "discovery" {
			one()
			continue
		}
		group.Go(one) // each waits for timers and watches of its own: all at once takes as long as the slowest
	}
	group.Wait()
	return nil
}

func newWorld(config *rest.Config, namespace string) (*world, error) {
	binary := rest.CopyConfig(config)
	binary.ContentType = "application/vnd.kubernetes.protobuf"
	binary.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	typed, err := kubernetes.NewForConfig(binary)
	if err != nil {
		return nil, err
	}
	loose, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &world{config: config, typed: typed, dynamic: loose, namespace: namespace}, nil
}

func contains(all []string, one string) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}

// expect returns an error with the message unless the condition holds.
func expect(holds bool, message string, about ...any) error {
	if holds {
		return nil
	}
	return fmt.Errorf(message, about...)
}

// eventually asks until the answer is true; the error names what did not come about.
func eventually(ctx context.Context, what string, check func() (bool, error)) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 40*time.Second, true, func(context.Context) (bool, error) {
		found, err := check()
		last = err
		return found, nil
	})
	if err != nil {
		return fmt.Errorf("%s did not come about: %w (last: %v)", what, err, last)
	}
	return nil
}

// first returns the first error of several.
func first(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// transport lets a case see and change its own requests.
type transport func(*http.Request, http.RoundTripper) (*http.Response, error)

func (t transport) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) { return t(r, next) })
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return r(request) }

func isWatch(request *http.Request) bool {
	return strings.Contains(request.URL.RawQuery, "watch=")
}
