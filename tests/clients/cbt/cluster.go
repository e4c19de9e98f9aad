package main

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	authnv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const cbtGroup = "cbt.storage.k8s.io"

// cbtVersions are the versions of SnapshotMetadataService that differ in name only, best first.
var cbtVersions = []string{"v1", "v1beta1", "v1alpha1"}

var (
	snapshots = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	contents  = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}
)

type cluster struct {
	config  *rest.Config
	typed   kubernetes.Interface
	dynamic dynamic.Interface
}

// snapshot is what the storage system calls a VolumeSnapshot.
type snapshot struct {
	driver string
	handle string
}

// service is where a driver's metadata is had, and how to know that it is the right place.
type service struct {
	address  string
	audience string
	roots    *x509.CertPool
}

type serviceAccount struct {
	namespace string
	name      string
}

func connect(config *rest.Config) (*cluster, error) {
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	untyped, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &cluster{config, typed, untyped}, nil
}

// snapshot finds the storage system's id of a snapshot that is ready and bound both ways. A service need not survive
// being asked for one that isn't.
func (c *cluster) snapshot(ctx context.Context, namespace, name string) (snapshot, error) {
	found, err := c.dynamic.Resource(snapshots).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return snapshot{}, err
	}
	ready, _, _ := unstructured.NestedBool(found.Object, "status", "readyToUse")
	bound := text(found, "status", "boundVolumeSnapshotContentName")
	if !ready || bound == "" {
		return snapshot{}, fmt.Errorf("VolumeSnapshot %s/%s is not ready", namespace, name)
	}
	content, err := c.dynamic.Resource(contents).Get(ctx, bound, metav1.GetOptions{})
	if err != nil {
		return snapshot{}, err
	}
	if text(content, "spec", "volumeSnapshotRef", "uid") != string(found.GetUID()) {
		return snapshot{}, fmt.Errorf("VolumeSnapshotContent %s is not bound to VolumeSnapshot %s/%s", bound, namespace, name)
	}
	ready, _, _ = unstructured.NestedBool(content.Object, "status", "readyToUse")
	result := snapshot{driver: text(content, "spec", "driver"), handle: text(content, "status", "snapshotHandle")}
	if !ready || result.driver == "" || result.handle == "" {
		return snapshot{}, fmt.Errorf("VolumeSnapshotContent %s is not ready", bound)
	}
	return result, nil
}

// service finds the SnapshotMetadataService that has the driver's name, in the best version that the cluster serves.
func (c *cluster) service(ctx context.Context, driver string) (service, error) {
	groups, err := c.typed.Discovery().ServerGroups()
	if err != nil {
		return service{}, err
	}
	served := map[string]bool{}
	for _, group := range groups.Groups {
		for _, version := range group.Versions {
			served[version.GroupVersion] = true
		}
	}
	best := slices.IndexFunc(cbtVersions, func(version string) bool { return served[cbtGroup+"/"+version] })
	if best < 0 {
		return service{}, fmt.Errorf("the cluster serves no known version of %s", cbtGroup)
	}
	resource := schema.GroupVersionResource{Group: cbtGroup, Version: cbtVersions[best], Resource: "snapshotmetadataservices"}
	found, err := c.dynamic.Resource(resource).Get(ctx, driver, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return service{}, fmt.Errorf("driver %s offers no changed block tracking: %w", driver, err)
	}
	if err != nil {
		return service{}, err
	}
	// Only the object's own authorities count, not those that this machine trusts.
	bundle, err := base64.StdEncoding.DecodeString(text(found, "spec", "caCert"))
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(bundle) {
		return service{}, fmt.Errorf("SnapshotMetadataService %s: caCert holds no certificate", driver)
	}
	result := service{text(found, "spec", "address"), text(found, "spec", "audience"), roots}
	if result.address == "" || result.audience == "" {
		return service{}, fmt.Errorf("SnapshotMetadataService %s: no address, or no audience", driver)
	}
	return result, nil
}

// token mints the credential that the service asks for. It is good for nothing else: one that the API server takes as
// well must not be handed to a third party.
func (c *cluster) token(ctx context.Context, audience string, r request) (string, error) {
	if slices.Contains(c.ownAudiences(), audience) {
		return "", fmt.Errorf("refused: audience %q is the API server's own", audience)
	}
	account, err := c.account(ctx, r)
	if err != nil {
		return "", err
	}
	minted, err := c.typed.CoreV1().ServiceAccounts(account.namespace).CreateToken(ctx, account.name, &authnv1.TokenRequest{
		Spec: authnv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &r.expiry},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return minted.Status.Token, nil
}

// account tells whose token is wanted: the one that the user names, or the one whose kubeconfig this is.
func (c *cluster) account(ctx context.Context, r request) (serviceAccount, error) {
	if r.account.name != "" {
		if r.account.namespace == "" {
			return serviceAccount{r.namespace, r.account.name}, nil
		}
		return r.account, nil
	}
	self, err := c.typed.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authnv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return serviceAccount{}, err
	}
	user := self.Status.UserInfo.Username
	parts := strings.Split(user, ":") // system:serviceaccount:NAMESPACE:NAME
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return serviceAccount{}, fmt.Errorf("%s is no ServiceAccount: name one with -service-account", user)
	}
	return serviceAccount{parts[2], parts[3]}, nil
}

// ownAudiences returns the audiences of the token that the kubeconfig holds, or none where it holds no such token.
func (c *cluster) ownAudiences() []string {
	token := c.config.BearerToken
	if c.config.BearerTokenFile != "" {
		if read, err := os.ReadFile(c.config.BearerTokenFile); err == nil {
			token = strings.TrimSpace(string(read))
		}
	}
	claims, err := audienceClaim(token)
	if err != nil {
		return nil
	}
	return claims
}

func audienceClaim(token string) ([]string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("no JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, err
	}
	var claims struct {
		Audiences []string `json:"aud"`
	}
	err = json.Unmarshal(payload, &claims)
	return claims.Audiences, err
}

func text(object *unstructured.Unstructured, path ...string) string {
	found, _, _ := unstructured.NestedString(object.Object, path...)
	return found
}
