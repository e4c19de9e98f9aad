package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	watchtools "k8s.io/client-go/tools/watch"
)

// seen counts what an informer's handlers were told, by name.
type seen struct {
	sync.Mutex
	added, updated, resynced, deleted map[string]int
}

func newSeen() *seen {
	return &seen{added: map[string]int{}, updated: map[string]int{}, resynced: map[string]int{}, deleted: map[string]int{}}
}

func (s *seen) handlers() cache.ResourceEventHandlerFuncs {
	count := func(in map[string]int, object any) {
		key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
		if err != nil {
			key = err.Error()
		}
		s.Lock()
		defer s.Unlock()
		in[key[strings.Index(key, "/")+1:]]++
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { count(s.added, object) },
		UpdateFunc: func(before, after any) {
			if before.(metav1.Object).GetResourceVersion() == after.(metav1.Object).GetResourceVersion() {
				count(s.resynced, after)
				return
			}
			count(s.updated, after)
		},
		DeleteFunc: func(object any) { count(s.deleted, object) },
	}
}

func (s *seen) of(in map[string]int, name string) int {
	s.Lock()
	defer s.Unlock()
	return in[name]
}

func informerCase(ctx context.Context, w *world) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	if _, err := maps.Create(ctx, configMap("informed", map[string]string{"a": "1"}), metav1.CreateOptions{}); err != nil {
		return err
	}
	only := informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.LabelSelector = "case in (informed,later)" })
	factory := informers.NewSharedInformerFactoryWithOptions(w.typed, time.Second, informers.WithNamespace(w.namespace), only)
	informer := factory.Core().V1().ConfigMaps().Informer()
	told := newSeen()
	if _, err := informer.AddEventHandler(told.handlers()); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the cache did not fill")
	}
	if _, err := maps.Create(ctx, configMap("later", nil), metav1.CreateOptions{}); err != nil {
		return err
	}
	object, err := maps.Get(ctx, "informed", metav1.GetOptions{})
	if err != nil {
		return err
	}
	object.Data["a"] = "2"
	if _, err := maps.Update(ctx, object, metav1.UpdateOptions{}); err != nil {
		return err
	}
	if err := eventually(ctx, "the update and a resync", func() (bool, error) {
		return told.of(told.added, "later") == 1 && told.of(told.updated, "informed") == 1 && told.of(told.resynced, "informed") > 0, nil
	}); err != nil {
		return err
	}
	if err := maps.Delete(ctx, "later", metav1.DeleteOptions{}); err != nil {
		return err
	}
	return eventually(ctx, "the deletion", func() (bool, error) {
		listed, err := factory.Core().V1().ConfigMaps().Lister().ConfigMaps(w.namespace).List(everything)
		return told.of(told.deleted, "later") == 1 && len(listed) == 1 && listed[0].Data["a"] == "2", err
	})
}

// relistCase waits for an informer's watch to end, keeps it from coming back, changes the objects meanwhile, and lets it come back with
// a revision from before the kind existed. The server must answer 410, and the informer's list must repair the cache.
func relistCase(ctx context.Context, w *world) error {
	served, group, err := definition(ctx, w, "relist")
	if err != nil {
		return err
	}
	defer undefine(w, group)
	var away, expired atomic.Bool
	var answers, held atomic.Int64
	config := rest.CopyConfig(w.config)
	config.Wrap(transport(func(request *http.Request, next http.RoundTripper) (*http.Response, error) {
		if !strings.Contains(request.URL.Path, group) {
			return next.RoundTrip(request)
		}
		for away.Load() { // a refusal would make it list at once; it is to come back with its revision
			held.Add(1)
			select {
			case <-request.Context().Done():
				return nil, request.Context().Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		query := request.URL.Query()
		resumes := isWatch(request) && query.Get("sendInitialEvents") == "" && query.Get("resourceVersion") != ""
		if resumes && expired.CompareAndSwap(true, false) {
			request = request.Clone(request.Context())
			query.Set("resourceVersion", "1")
			request.URL.RawQuery = query.Encode()
			response, err := next.RoundTrip(request)
			if err == nil {
				response.Body = &remembering{ReadCloser: response.Body, code: response.StatusCode, found: &answers}
			}
			return response, err
		}
		if isWatch(request) { // the server ends it soon, in good order: only then is it resumed by its revision
			request = request.Clone(request.Context())
			query.Set("timeoutSeconds", "2")
			request.URL.RawQuery = query.Encode()
		}
		return next.RoundTrip(request)
	}).wrap)
	loose, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	gadgets := w.dynamic.Resource(served).Namespace(w.namespace)
	for _, name := range []string{"stays", "goes"} {
		if _, err := gadgets.Create(ctx, gadget(group, name, 1), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(loose, 0, w.namespace, nil)
	informer := factory.ForResource(served).Informer()
	told := newSeen()
	if _, err := informer.AddEventHandler(told.handlers()); err != nil {
		return err
	}
	_ = informer.SetWatchErrorHandler(func(*cache.Reflector, error) {})
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the cache did not fill")
	}
	// An event through the open watch: from here on the informer resumes a watch by revision.
	if _, err := gadgets.Create(ctx, gadget(group, "seen", 1), metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := eventually(ctx, "the first events", func() (bool, error) { return told.of(told.added, "seen") == 1, nil }); err != nil {
		return err
	}
	away.Store(true)
	if err := eventually(ctx, "the watch's end", func() (bool, error) { return held.Load() > 0, nil }); err != nil {
		return err
	}
	if err := gadgets.Delete(ctx, "goes", metav1.DeleteOptions{}); err != nil {
		return err
	}
	if _, err := gadgets.Create(ctx, gadget(group, "comes", 1), metav1.CreateOptions{}); err != nil {
		return err
	}
	expired.Store(true)
	away.Store(false)
	if err := eventually(ctx, "the repaired cache", func() (bool, error) {
		return told.of(told.deleted, "goes") == 1 && told.of(told.added, "comes") == 1, nil
	}); err != nil {
		return err
	}
	return first(
		expect(answers.Load() == http.StatusGone, "a watch from long ago was answered with %d", answers.Load()),
		expect(told.of(told.added, "stays") == 1, "what stayed was added again"),
	)
}

// remembering notes whether a watch was answered by 410: as the response's code, or as its first event.
type remembering struct {
	io.ReadCloser
	code  int
	found *atomic.Int64
	text  strings.Builder
}

func (r *remembering) Read(into []byte) (int, error) {
	n, err := r.ReadCloser.Read(into)
	r.text.Write(into[:n])
	r.found.Store(int64(r.code))
	if strings.Contains(r.text.String(), `"type":"ERROR"`) && strings.Contains(r.text.String(), `"code":410`) {
		r.found.Store(http.StatusGone)
	}
	return n, err
}

func watchListCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	if _, err := maps.Create(ctx, configMap("listed-by-watch", nil), metav1.CreateOptions{}); err != nil {
		return err
	}
	initial := true
	events, err := maps.Watch(ctx, metav1.ListOptions{
		LabelSelector: "case=listed-by-watch", SendInitialEvents: &initial, AllowWatchBookmarks: true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	if err != nil {
		return err
	}
	defer events.Stop()
	one, two := <-events.ResultChan(), <-events.ResultChan()
	mark, ok := two.Object.(*corev1.ConfigMap)
	return first(
		expect(one.Type == watch.Added, "first comes %v", one),
		expect(two.Type == watch.Bookmark && ok && mark.Annotations[metav1.InitialEventsAnnotationKey] == "true", "then comes %v", two),
	)
}

func bookmarksCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	start, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "case=nothing"})
	if err != nil {
		return err
	}
	seconds := int64(8) // one comes two seconds before the end, if that is not too soon
	events, err := maps.Watch(ctx, metav1.ListOptions{
		LabelSelector: "case=nothing", ResourceVersion: start.ResourceVersion, AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
	})
	if err != nil {
		return err
	}
	defer events.Stop()
	// Changes elsewhere: a bookmark must carry the watch beyond them.
	later, err := maps.Create(ctx, configMap("beyond", nil), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	last := ""
	for event := range events.ResultChan() {
		if event.Type != watch.Bookmark {
			return fmt.Errorf("an event of another object: %v", event)
		}
		last = event.Object.(*corev1.ConfigMap).ResourceVersion
	}
	order, err := compareRevisions(last, later.ResourceVersion)
	return first(err, expect(order >= 0, "the last bookmark is at %q, before %q", last, later.ResourceVersion))
}

func retryWatcherCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	start, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	opened := atomic.Int64{}
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, start.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			opened.Add(1)
			seconds := int64(1) // so that it has to come back
			options.LabelSelector, options.TimeoutSeconds = "case in (retry-1,retry-2)", &seconds
			return maps.Watch(ctx, options)
		},
	})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for i, name := range []string{"retry-1", "retry-2"} {
		if err := eventually(ctx, "another watch", func() (bool, error) { return opened.Load() > int64(2*i), nil }); err != nil {
			return err
		}
		if _, err := maps.Create(ctx, configMap(name, nil), metav1.CreateOptions{}); err != nil {
			return err
		}
		event := <-watcher.ResultChan()
		found, ok := event.Object.(*corev1.ConfigMap)
		if event.Type != watch.Added || !ok || found.Name != name {
			return fmt.Errorf("not %s but %v", name, event)
		}
	}
	return nil
}

func leaderCase(ctx context.Context, w *world) error {
	ctx, stopAll := context.WithCancel(ctx)
	defer stopAll()
	leading := make(chan string, 4)
	candidate := func(name string) (context.CancelFunc, <-chan struct{}, error) {
		own, stop := context.WithCancel(ctx)
		lock := &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Name: "leader", Namespace: w.namespace},
			Client:     w.typed.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: name},
		}
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, ReleaseOnCancel: true, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 200 * time.Millisecond,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { leading <- name },
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return stop, nil, err
		}
		ended := make(chan struct{})
		go func() { defer close(ended); elector.Run(own) }()
		return stop, ended, nil
	}
	stopOne, endedOne, err := candidate("one")
	if err != nil {
		return err
	}
	defer stopOne()
	if found := <-leading; found != "one" {
		return fmt.Errorf("%s leads", found)
	}
	stopTwo, _, err := candidate("two")
	if err != nil {
		return err
	}
	defer stopTwo()
	before, err := w.typed.CoordinationV1().Leases(w.namespace).Get(ctx, "leader", metav1.GetOptions{})
	if err != nil {
		return err
	}
	stopOne()
	<-endedOne
	select {
	case found := <-leading:
		if found != "two" {
			return fmt.Errorf("%s leads", found)
		}
	case <-ctx.Done():
		return fmt.Errorf("nobody leads after the release")
	}
	after, err := w.typed.CoordinationV1().Leases(w.namespace).Get(ctx, "leader", metav1.GetOptions{})
	if err != nil {
		return err
	}
	return first(
		expect(*before.Spec.HolderIdentity == "one" && before.Spec.RenewTime != nil, "lease %v", before.Spec),
		expect(*after.Spec.HolderIdentity == "two" && *after.Spec.LeaseTransitions > *before.Spec.LeaseTransitions, "lease %v", after.Spec),
	)
}
