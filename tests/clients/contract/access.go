package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
)

var everything = labels.Everything()

func compareRevisions(a, b string) (int, error) {
	left, err := strconv.ParseUint(a, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("no revision: %w", err)
	}
	right, err := strconv.ParseUint(b, 10, 64)
	switch {
	case err != nil:
		return 0, err
	case left < right:
		return -1, nil
	case left > right:
		return 1, nil
	}
	return 0, nil
}

func deletionCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	family := func(name string) error {
		owner, err := maps.Create(ctx, configMap(name, nil), metav1.CreateOptions{})
		if err != nil {
			return err
		}
		blocking := true
		child := configMap(name+"-child", nil)
		child.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: name, UID: owner.UID, BlockOwnerDeletion: &blocking}}
		child.Finalizers = []string{"example.com/held"}
		_, err = maps.Create(ctx, child, metav1.CreateOptions{})
		return err
	}
	release := func(name string) error {
		_, err := maps.Patch(ctx, name+"-child", "application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		return err
	}
	gone := func(name string) (bool, error) {
		_, err := maps.Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	}
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationForeground, metav1.DeletePropagationBackground, metav1.DeletePropagationOrphan} {
		name := "owner-" + strings.ToLower(string(policy))
		if err := family(name); err != nil {
			return err
		}
		if err := maps.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			return err
		}
		check := func() error {
			switch policy {
			case metav1.DeletePropagationForeground:
				// The owner waits for the child, and the child for its finalizer.
				owner, err := maps.Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if err := expect(owner.DeletionTimestamp != nil && fmt.Sprint(owner.Finalizers) == "[foregroundDeletion]", "owner %v", owner.ObjectMeta); err != nil {
					return err
				}
				return eventually(ctx, "the child's deletion", func() (bool, error) {
					child, err := maps.Get(ctx, name+"-child", metav1.GetOptions{})
					return err == nil && child.DeletionTimestamp != nil, err
				})
			case metav1.DeletePropagationBackground:
				if found, _ := gone(name); !found {
					return fmt.Errorf("the owner did not go at once")
				}
				return eventually(ctx, "the child's deletion", func() (bool, error) {
					child, err := maps.Get(ctx, name+"-child", metav1.GetOptions{})
					return err == nil && child.DeletionTimestamp != nil, err
				})
			default:
				if err := eventually(ctx, "the orphaning", func() (bool, error) { return gone(name) }); err != nil {
					return err
				}
				child, err := maps.Get(ctx, name+"-child", metav1.GetOptions{})
				if err != nil {
					return err
				}
				return expect(len(child.OwnerReferences) == 0 && child.DeletionTimestamp == nil, "orphan %v", child.ObjectMeta)
			}
		}
		if err := first(check(), release(name)); err != nil {
			return fmt.Errorf("%s: %w", policy, err)
		}
		if err := eventually(ctx, "the owner's end", func() (bool, error) { return gone(name) }); err != nil {
			return fmt.Errorf("%s: %w", policy, err)
		}
	}
	return nil
}

func tokensCase(ctx context.Context, w *world) error {
	accounts := w.typed.CoreV1().ServiceAccounts(w.namespace)
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	secret, err := w.typed.CoreV1().Secrets(w.namespace).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "anchor"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	seconds := int64(900)
	token, err := accounts.CreateToken(ctx, "robot", &authnv1.TokenRequest{Spec: authnv1.TokenRequestSpec{
		Audiences: []string{"storage.example.com"}, ExpirationSeconds: &seconds,
		BoundObjectRef: &authnv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: "anchor", UID: secret.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	review := func(audience string) (authnv1.TokenReviewStatus, error) {
		spec := authnv1.TokenReviewSpec{Token: token.Status.Token}
		if audience != "" {
			spec.Audiences = []string{audience}
		}
		found, err := w.typed.AuthenticationV1().TokenReviews().Create(ctx, &authnv1.TokenReview{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			return authnv1.TokenReviewStatus{}, err
		}
		return found.Status, nil
	}
	right, err := review("storage.example.com")
	if err != nil {
		return err
	}
	wrong, err := review("elsewhere.example.com")
	if err != nil {
		return err
	}
	own, err := review("")
	if err != nil {
		return err
	}
	allowed := func(user string) (bool, error) {
		found, err := w.typed.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authzv1.SubjectAccessReview{Spec: authzv1.SubjectAccessReviewSpec{
			User: user, Groups: []string{"system:authenticated"},
			ResourceAttributes: &authzv1.ResourceAttributes{Namespace: w.namespace, Verb: "get", Group: "snapshot.storage.k8s.io", Resource: "volumesnapshots"},
		}}, metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		return found.Status.Allowed, nil
	}
	robot, err := allowed(right.User.Username)
	if err != nil {
		return err
	}
	self, err := w.typed.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authzv1.SelfSubjectAccessReview{Spec: authzv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authzv1.ResourceAttributes{Verb: "*", Group: "*", Resource: "*"},
	}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if err := w.typed.CoreV1().Secrets(w.namespace).Delete(ctx, "anchor", metav1.DeleteOptions{}); err != nil {
		return err
	}
	return first(
		expect(right.Authenticated && right.User.Username == "system:serviceaccount:"+w.namespace+":robot", "review %v", right),
		expect(fmt.Sprint(right.Audiences) == "[storage.example.com]", "audiences %v", right.Audiences),
		expect(!wrong.Authenticated && !own.Authenticated, "a token of another audience was taken: %v %v", wrong, own),
		expect(!robot, "an account without a role may read snapshots"),
		expect(self.Status.Allowed, "the administrator may not do everything"),
		eventually(ctx, "the token's end with its anchor", func() (bool, error) {
			found, err := review("storage.example.com")
			return err == nil && !found.Authenticated, err
		}),
	)
}

func eventsCase(ctx context.Context, w *world) error {
	object, err := w.typed.CoreV1().ConfigMaps(w.namespace).Create(ctx, configMap("told", nil), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	sink := &events.EventSinkImpl{Interface: w.typed.EventsV1()}
	broadcaster := events.NewBroadcaster(sink)
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	recorder := broadcaster.NewRecorder(scheme.Scheme, "contract-client")
	object.APIVersion, object.Kind = "v1", "ConfigMap"
	recorder.Eventf(object, nil, corev1.EventTypeWarning, "Tested", "Testing", "it was said %d time", 1)
	return eventually(ctx, "the event", func() (bool, error) {
		found, err := w.typed.CoreV1().Events(w.namespace).List(ctx, metav1.ListOptions{
			FieldSelector: "involvedObject.name=told,reason=Tested,type=Warning",
		})
		if err != nil || len(found.Items) != 1 {
			return false, err
		}
		one := found.Items[0]
		return one.Message == "it was said 1 time" && one.ReportingController == "contract-client" && one.Action == "Testing", nil
	})
}
